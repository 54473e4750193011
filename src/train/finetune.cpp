#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/text.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/train/trainer.h"

namespace stablemask {
namespace {

/// Stated model fields whose value is not the checkpoint's, each with its place.
std::vector<std::string> contradictions(const std::vector<StatedField>& stated, const Config& user,
                                        const Config& saved) {
  const nlohmann::json user_json = nlohmann::json::parse(dump_config(user));
  const nlohmann::json saved_json = nlohmann::json::parse(dump_config(saved));
  std::vector<std::string> problems;
  for (const StatedField& field : stated) {
    if (!field.pointer.starts_with("/model/")) continue;
    const nlohmann::json::json_pointer where(field.pointer);
    const bool from_tokenizer = field.pointer == "/model/vocab_size" && user.model.vocab_size == 0;
    if (from_tokenizer || user_json[where] == saved_json[where]) continue;
    problems.push_back(field.place + ": " + field.pointer + ": " + user_json[where].dump() +
                       " here, " + saved_json[where].dump() + " in the checkpoint");
  }
  return problems;
}

/// A checkpoint's config and where it is from.
struct SavedConfig {
  std::string folder, text;
};

/// Of the newest checkpoint under `root` whose config can be read; nullopt: there is none. Damage
/// is reported by the trainer, which reads the checkpoints completely.
std::optional<SavedConfig> newest_config(const std::string& root) {
  std::vector<CheckpointSummary> found = list_checkpoints(root);
  for (auto summary = found.rbegin(); summary != found.rend(); ++summary) {
    if (!summary->complete) continue;
    try {
      return SavedConfig{summary->folder, read_checkpoint_config(summary->folder)};
    } catch (const CheckpointError&) {
      continue;
    }
  }
  return std::nullopt;
}

SavedConfig config_of(const std::string& path) {
  const std::string folder = resolve_checkpoint(path);
  return {folder, read_checkpoint_config(folder)};
}

/// Of the checkpoint that a run with these options resumes from; nullopt: a fresh run.
std::optional<SavedConfig> resumed_config(const Config& config, const RunOptions& options) {
  if (options.resume == ResumePolicy::kNever) return std::nullopt;
  if (options.resume == ResumePolicy::kFolder) return config_of(options.resume_folder);
  return newest_config(config.train.out + "/checkpoints");
}

}  // namespace

Config load_finetune_config(const std::string& path, const std::vector<std::string>& overrides,
                            const RunOptions& options) {
  Config config = load_config(path, overrides);
  if (config.train.init_from.empty()) {
    throw ConfigError(path +
                      ": /train/init_from: empty; finetuning starts from a checkpoint or run "
                      "folder");
  }
  // A resumed run does not need its source any more, which may have been removed.
  std::optional<SavedConfig> source = resumed_config(config, options);
  if (!source) source = config_of(config.train.init_from);
  const Config saved = parse_saved_config(source->text, source->folder + "/config.json");
  const std::vector<std::string> problems =
      contradictions(stated_fields(path, overrides), config, saved);
  if (!problems.empty()) {
    throw ConfigError(join(problems) + "; finetuning uses the model of " + source->folder +
                      ": remove these fields");
  }
  config.model = saved.model;
  return parse_config(dump_config(config), path);
}

}  // namespace stablemask
