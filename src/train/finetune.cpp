#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/config/model_source.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/train/trainer.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

/// The checkpoint whose model a finetuning run has.
struct Source {
  std::string folder;
  Config config;
  bool resumed;  ///< a checkpoint of the run itself
};

/// A model field whose value differs from the source's.
struct Change {
  std::string pointer;
  std::string place;  ///< where it is stated; "": not stated
  Json before, after;

  std::string differences() const {
    return place + ": " + pointer + ": " + json_text(after) + " here, " + json_text(before) +
           " in the checkpoint";
  }
};

std::vector<Change> model_changes(const std::vector<StatedField>& stated, const Config& source,
                                  const Config& now) {
  std::map<std::string, std::string> places;
  for (const StatedField& field : stated) places[field.pointer] = field.place;
  const Json before = Json::parse(dump_config(source)), after = Json::parse(dump_config(now));
  std::vector<Change> changes;
  for (const std::string section : {"/model", "/model/stable_mask"}) {
    for (const auto& [name, value] : after[Json::json_pointer(section)].items()) {
      const std::string pointer = section + "/" + name;
      const Json& old_value = before[Json::json_pointer(pointer)];
      if (pointer == "/model/stable_mask" || value == old_value) continue;
      changes.push_back({pointer, places[pointer], old_value, value});
    }
  }
  return changes;
}

/// Whether a model of config `now` can start from weights of config `source`: the parameters are
/// the same, except that those of a learnable mask may be added, and are cut into the same heads.
/// Adapters do not count: a source's are merged, and the run's own are new.
bool weights_fit(ModelConfig source, ModelConfig now) {
  const bool adapts = now.lora.rank > 0;
  source.lora = now.lora = {};
  const auto heads = [](const ModelConfig& model) {
    return std::array{model.heads, model.resolved_kv_heads(), model.resolved_head_dim()};
  };
  if (heads(source) != heads(now)) return false;
  std::map<std::string, std::vector<int64_t>> missing;
  for (const nn::Parameter& parameter : nn::parameters(source)) {
    missing[parameter.name] = parameter.shape;
  }
  for (const nn::Parameter& parameter : nn::parameters(now)) {
    const auto found = missing.find(parameter.name);
    if (found == missing.end()) {
      if (parameter.role != nn::Role::kMask || adapts) return false;
    } else {
      if (found->second != parameter.shape) return false;
      missing.erase(found);
    }
  }
  return missing.empty();
}

/// Whether the weights fit when only this change is made.
bool fits_alone(const Change& change, const Config& source) {
  Json json = Json::parse(dump_config(source));
  json[Json::json_pointer(change.pointer)] = change.after;
  try {
    return weights_fit(source.model, parse_config(json_text(json), "").model);
  } catch (const ConfigError&) {  // a size that contradicts the others
    return false;
  }
}

/// Throws ConfigError naming the stated changes that need other weights than the source's.
void require_same_weights(const std::vector<Change>& changes, const Source& source,
                          const Config& now) {
  std::vector<std::string> problems, all;
  if (!weights_fit(source.config.model, now.model)) {
    for (const Change& change : changes) {
      if (change.place.empty()) continue;
      all.push_back(change.differences());
      if (!fits_alone(change, source.config)) problems.push_back(all.back());
    }
    throw ConfigError(join(problems.empty() ? all : problems) +
                      "; finetuning uses the weights of " + source.folder +
                      ", which this changes: remove these fields");
  }
  const StableMaskConfig& mask = source.config.model.stable_mask;
  if (!mask.enabled || !mask.learnable) return;
  for (const Change& change : changes) {
    const std::string& field = change.pointer;
    if (field != "/model/stable_mask/gamma" && field != "/model/stable_mask/p_base") continue;
    problems.push_back(change.place + ": " + field + ": was learned by " + source.folder +
                       " (model.stable_mask.learnable), so its value comes from the weights");
  }
  if (!problems.empty()) throw ConfigError(join(problems) + ": remove these fields");
}

/// A fixed mask length that is shorter than the context; "": it is not.
std::string rows_beyond_text(const Config& config) {
  const StableMaskConfig& mask = config.model.stable_mask;
  if (!mask.enabled || mask.mask_length.kind != MaskLengthSpec::Kind::kFixed ||
      mask.mask_length.length >= config.train.context) {
    return "";
  }
  const bool infinite = mask.beyond == BeyondMask::kInfinite;
  return format(
      "train.context %lld exceeds the mask length %lld: rows from %lld on have %s; "
      "--set model.stable_mask.mask_length=context stretches the mask over the context",
      static_cast<long long>(config.train.context), static_cast<long long>(mask.mask_length.length),
      static_cast<long long>(mask.mask_length.length),
      infinite ? "the pseudo mass of an infinite mask length"
               : "no pseudo mass (model.stable_mask.beyond is \"none\")");
}

/// Fields of a mask that is off in both models are left out.
void log_changes(const std::vector<Change>& changes, const Source& source, bool has_mask) {
  std::vector<std::string> lines;
  for (const Change& change : changes) {
    if (change.place.empty() && !has_mask) continue;
    lines.push_back("  " + change.pointer + ": " + json_text(change.before) + " -> " +
                    json_text(change.after));
  }
  if (lines.empty()) return;
  log_info("stablemask: the model of " + source.folder + " with these changes:");
  for (const std::string& line : lines) log_info(line);
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
  SavedConfig config;
  with_checkpoint(path, [&](const std::string& folder) {
    config = {folder, read_checkpoint_config(folder)};
  });
  return config;
}

/// Of the checkpoint that a run with these options resumes from; nullopt: a fresh run.
std::optional<SavedConfig> resumed_config(const Config& config, const RunOptions& options) {
  if (options.resume == ResumePolicy::kNever) return std::nullopt;
  if (options.resume == ResumePolicy::kFolder) return config_of(options.resume_folder);
  return newest_config(config.train.out + "/checkpoints");
}

/// `path` names the config in messages.
Source find_source(const std::string& path, const Config& config, const RunOptions& options) {
  if (config.train.init_from.empty()) {
    throw ConfigError(path +
                      ": /train/init_from: empty; finetuning starts from a checkpoint or run "
                      "folder");
  }
  // A resumed run does not need its source any more, which may have been removed.
  const std::optional<SavedConfig> resumed = resumed_config(config, options);
  const SavedConfig saved = resumed ? *resumed : config_of(config.train.init_from);
  return {saved.folder, parse_saved_config(saved.text, saved.folder + "/config.json"),
          resumed.has_value()};
}

}  // namespace

Config load_finetune_config(const std::string& path, const std::vector<std::string>& overrides,
                            const RunOptions& options) {
  std::optional<Source> source;
  Config config = load_config_with_model(path, overrides, [&](const Config& draft) {
    source = find_source(path, draft, options);
    ModelConfig model = source->config.model;
    model.lora = {};  // a section of the config of its own
    // The fields of a mask that was never used are no choice of the source.
    if (!source->resumed && !model.stable_mask.enabled) {
      model.stable_mask = {};
      model.stable_mask.enabled = false;
    }
    return model;
  });
  const ModelConfig& model = source->config.model;
  if (config.model.vocab_size == 0) config.model.vocab_size = model.vocab_size;
  const std::vector<Change> changes =
      model_changes(stated_fields(path, overrides), source->config, config);
  require_same_weights(changes, *source, config);
  if (source->resumed) return config;
  if (!options.quiet) log_changes(changes, *source, config.model.stable_mask.enabled);
  const std::string beyond = rows_beyond_text(config);
  if (beyond.empty()) return config;
  if (config.model.stable_mask.beyond == BeyondMask::kNone) {
    log_warning(beyond);
  } else if (!options.quiet) {
    log_info("stablemask: " + beyond);
  }
  return config;
}

}  // namespace stablemask
