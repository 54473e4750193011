#include "stablemask/config/config.h"

#include <algorithm>
#include <utility>

#include "src/config/config_fields.h"
#include "src/config/config_reader.h"
#include "src/config/config_rules.h"
#include "src/config/config_values.h"
#include "stablemask/base/error.h"
#include "stablemask/base/input_stream.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/config/model_source.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

/// Presets are defaults: they are applied before the stated values.
void apply_preset(const StatedValues& stated, Config& config) {
  const auto preset_value = stated.find(std::string(kPresetPointer));
  if (preset_value == stated.end()) return;
  Config probe;
  if (!preset_value->second.read_into(probe).empty()) return;  // reported with the other fields
  for (const Preset& preset : model_presets()) {
    if (preset.name != probe.model.preset) continue;
    config.model.layers = preset.layers;
    config.model.channels = preset.channels;
    config.model.heads = preset.heads;
    config.model.ffn_hidden = preset.ffn_hidden;
    config.model.vocab_size = preset.vocab_size;
  }
}

/// Names the stated values that are involved; for a size that a preset gave, the preset. Silent
/// when one of the fields has an error already. `known_model`: the values of `model` that are not
/// stated are no mere defaults.
void report(const Contradiction& rule, const StatedValues& stated, bool known_model,
            ConfigIssues& issues) {
  const bool only_if_stated = !rule.if_stated.empty() && !known_model;
  if (only_if_stated && !stated.contains(rule.if_stated)) return;
  std::vector<ValueSource> sources;
  for (const std::string& pointer : rule.pointers) {
    if (issues.concerns(pointer)) return;
    auto value = stated.find(pointer);
    if (value == stated.end() && is_preset_size(pointer)) {
      value = stated.find(std::string(kPresetPointer));
    }
    if (value != stated.end()) sources.push_back(value->second.source);
  }
  issues.add(rule.pointers.front(), sources, rule.message);
}

std::string read_file(const std::string& path) {
  constexpr size_t kMax = size_t{1} << 20;
  return InputStream(path, ExitCode::kConfig).rest(kMax);
}

/// With the values that stand for another field replaced, so that equal models compare equal.
Config spelt_out(const Config& config) {
  Config copy = config;
  copy.model.kv_heads = config.model.resolved_kv_heads();
  copy.model.head_dim = config.model.resolved_head_dim();
  copy.model.rope_dims = config.model.resolved_rope_dims();
  const MaskLengthSpec& length = config.model.stable_mask.mask_length;
  const bool rows_beyond =
      length.kind == MaskLengthSpec::Kind::kFixed && length.length < config.train.context;
  if (!rows_beyond) copy.model.stable_mask.beyond = BeyondMask::kInfinite;  // not used in training
  return copy;
}

constexpr std::string_view kLengthPointers[] = {"/train/steps", "/train/epochs", "/train/tokens"};

/// A length of the run that --set states replaces the file's, in whichever unit that is.
StatedValues with_one_length(StatedValues stated) {
  const bool overridden = std::ranges::any_of(kLengthPointers, [&](std::string_view pointer) {
    const auto found = stated.find(std::string(pointer));
    return found != stated.end() && !found->second.source.set.empty();
  });
  if (!overridden) return stated;
  for (const std::string_view pointer : kLengthPointers) {
    const auto found = stated.find(std::string(pointer));
    if (found != stated.end() && found->second.source.set.empty()) stated.erase(found);
  }
  return stated;
}

/// Reads the stated values over those of `config`.
void read_values(const StatedValues& stated, Config& config, ConfigIssues& issues) {
  apply_preset(stated, config);
  for (const auto& [pointer, value] : stated) {
    const std::string problem = value.read_into(config);
    if (!problem.empty()) issues.add(pointer, {value.source}, problem);
  }
  const bool other_unit = config.train.epochs > 0 || config.train.tokens > 0;
  if (other_unit && !stated.contains("/train/steps")) config.train.steps = 0;
}

/// Resolved; throws ConfigError with all issues.
Config checked(Config config, const StatedValues& stated, bool known_model, ConfigIssues& issues) {
  for (const Contradiction& rule : find_contradictions(config)) {
    report(rule, stated, known_model, issues);
  }
  if (!issues.empty()) throw ConfigError(issues.text());
  resolve(config);
  return config;
}

Config parse(ConfigReader reader, const std::string& text,
             const std::vector<std::string>& overrides) {
  reader.read(text, overrides);
  const StatedValues stated = with_one_length(reader.stated());
  Config config;
  read_values(stated, config, reader.issues());
  return checked(std::move(config), stated, /*known_model=*/false, reader.issues());
}

void log_warnings(const Config& config) {
  for (const std::string& warning : config_warnings(config)) log_warning(warning);
}

}  // namespace

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
  Config config = parse_config(read_file(path), path, overrides);
  log_warnings(config);
  return config;
}

Config load_config_with_model(const std::string& path, const std::vector<std::string>& overrides,
                              const ModelSource& source) {
  ConfigReader reader(path);
  reader.read(read_file(path), overrides);
  ConfigIssues& issues = reader.issues();
  // Migrating a file states what its version left out; here the source's model has these fields.
  StatedValues stated = with_one_length(reader.stated());
  std::erase_if(stated, [](const auto& entry) {
    const ValueSource& from = entry.second.source;
    return from.set.empty() && from.at.line == 0 && entry.first.starts_with("/model/");
  });
  Config draft;
  read_values(stated, draft, issues);
  if (!issues.empty()) throw ConfigError(issues.text());
  Config config;
  config.model = source(draft);
  read_values(stated, config, issues);
  config = checked(std::move(config), stated, /*known_model=*/true, issues);
  log_warnings(config);
  return config;
}

Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& overrides) {
  return parse(ConfigReader(name), text, overrides);
}

Config parse_saved_config(const std::string& text, const std::string& name,
                          const std::vector<std::string>& overrides) {
  return parse(ConfigReader(name, ConfigReader::Origin::kSaved), text, overrides);
}

std::vector<StatedField> stated_fields(const std::string& path,
                                       const std::vector<std::string>& overrides) {
  ConfigReader reader(path);
  reader.read(read_file(path), overrides);
  std::vector<StatedField> fields;
  for (const auto& [pointer, value] : reader.stated()) {
    std::string place = place_of(value.source, path);
    // Without one the file's version implies the value.
    if (!place.empty()) fields.push_back({pointer, std::move(place)});
  }
  return fields;
}

std::string dump_config(const Config& config) {
  Json root = {{"version", kConfigVersion}};
  for (const Section& section : config_sections()) {
    Json& object = root[Json::json_pointer(std::string(section.pointer))];
    for (const Field& field : section.fields) object[field.name] = value_json(field, config);
  }
  return json_text(root, 2) + "\n";
}

std::vector<std::string> frozen_differences(const Config& saved, const Config& now) {
  const Config before = spelt_out(saved), after = spelt_out(now);
  std::vector<std::string> lines;
  for (const Section& section : config_sections()) {
    for (const Field& field : section.fields) {
      if (!field.frozen) continue;
      const Json old_value = value_json(field, before), new_value = value_json(field, after);
      if (old_value == new_value) continue;
      lines.push_back(field_pointer(section, field) + ": " + json_text(old_value) + " -> " +
                      json_text(new_value));
    }
  }
  return lines;
}

}  // namespace stablemask
