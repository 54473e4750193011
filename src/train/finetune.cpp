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

using Json = nlohmann::json;

/// Stated model fields whose value is not the checkpoint's, each with its place.
std::vector<std::string> contradictions(const std::vector<StatedField>& stated, const Config& user,
                                        const Config& saved) {
  const Json user_json = Json::parse(dump_config(user));
  const Json saved_json = Json::parse(dump_config(saved));
  std::vector<std::string> problems;
  for (const StatedField& field : stated) {
    if (!field.pointer.starts_with("/model/")) continue;
    const Json::json_pointer where(field.pointer);
    const bool from_tokenizer = field.pointer == "/model/vocab_size" && user.model.vocab_size == 0;
    if (from_tokenizer || user_json[where] == saved_json[where]) continue;
    problems.push_back(field.place + ": " + field.pointer + ": " + user_json[where].dump() +
                       " here, " + saved_json[where].dump() + " in the checkpoint");
  }
  return problems;
}

/// The checkpoint that a run with these options goes on from, as far as its model is concerned;
/// nullopt: a fresh run. Damage is left to the trainer to tell, which reads it all again.
std::optional<Checkpoint> resumed_checkpoint(const Config& config, const RunOptions& options) {
  if (options.resume == ResumePolicy::kNever) return std::nullopt;
  if (options.resume == ResumePolicy::kFolder) {
    return load_checkpoint(resolve_checkpoint(options.resume_folder),
                           CheckpointParts::kWithoutOptimizer);
  }
  return load_latest_checkpoint(config.train.out + "/checkpoints",
                                CheckpointParts::kWithoutOptimizer, DamageWarnings::kIfNoneIsSound);
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
  // A run that goes on needs its source no longer, which may be gone.
  std::optional<Checkpoint> source = resumed_checkpoint(config, options);
  if (!source) {
    source = load_checkpoint(resolve_checkpoint(config.train.init_from),
                             CheckpointParts::kWithoutOptimizer);
  }
  const Config saved = parse_config(source->config_json, source->folder + "/config.json");
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
