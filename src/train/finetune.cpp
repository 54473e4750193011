#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/text.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/train/trainer.h"

namespace stablemask {
namespace {

using Json = nlohmann::json;

/// JSON pointers of the model fields that the user wrote down, in the file or as an override.
std::set<std::string> stated_model_fields(const std::string& path,
                                          const std::vector<std::string>& overrides) {
  std::set<std::string> pointers;
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto collect = [&](const auto& self, const Json& value,
                           const std::string& pointer) -> void {
    if (!value.is_object()) {
      pointers.insert(pointer);
      return;
    }
    for (const auto& [key, child] : value.items()) self(self, child, pointer + "/" + key);
  };
  if (json.is_object() && json.contains("model")) collect(collect, json["model"], "/model");
  for (const std::string& assignment : overrides) {
    std::string name = assignment.substr(0, assignment.find('='));
    if (name.rfind("model.", 0) != 0) continue;
    for (char& c : name) c = c == '.' ? '/' : c;
    pointers.insert("/" + name);
  }
  return pointers;
}

/// Stated fields whose value is not the checkpoint's.
std::vector<std::string> contradictions(const std::set<std::string>& stated, const Config& user,
                                        const Config& saved) {
  const Json user_json = Json::parse(dump_config(user));
  const Json saved_json = Json::parse(dump_config(saved));
  std::vector<std::string> problems;
  for (const std::string& pointer : stated) {
    const Json::json_pointer where(pointer);
    if (!user_json.contains(where) || !saved_json.contains(where)) continue;
    const bool from_tokenizer = pointer == "/model/vocab_size" && user.model.vocab_size == 0;
    if (from_tokenizer || user_json[where] == saved_json[where]) continue;
    problems.push_back(pointer + ": " + user_json[where].dump() + " here, " +
                       saved_json[where].dump() + " in the checkpoint");
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
      contradictions(stated_model_fields(path, overrides), config, saved);
  if (!problems.empty()) {
    throw ConfigError(path + ": the model is the checkpoint's, " + source->folder + "; remove " +
                      join(problems));
  }
  config.model = saved.model;
  return parse_config(dump_config(config), path);
}

}  // namespace stablemask
