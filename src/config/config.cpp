#include "stablemask/config/config.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <tuple>

#include "src/config/config_fields.h"
#include "src/config/config_rules.h"
#include "src/config/config_values.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/spelling.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

/// One value that the user gave a field, in the file or by --set.
struct Assignment {
  const Field* field;
  JsonValue value;       ///< from the file
  std::string argument;  ///< from --set: the text behind "="
  bool from_argument;
  JsonPosition at() const { return from_argument ? JsonPosition{} : value.at; }
};

const Field* find_field(const Section& section, std::string_view name) {
  for (const Field& field : section.fields) {
    if (field.name == name) return &field;
  }
  return nullptr;
}

/// Names that may stand in the object at `pointer` ("" is the whole config).
std::vector<std::string> keys_of(std::string_view pointer) {
  std::vector<std::string> keys;
  if (const Section* section = find_section(pointer)) {
    for (const Field& field : section->fields) keys.emplace_back(field.name);
  }
  for (const Section& section : config_sections()) {
    const size_t slash = section.pointer.rfind('/');
    if (section.pointer.substr(0, slash) == pointer) {
      keys.emplace_back(section.pointer.substr(slash + 1));
    }
  }
  return keys;
}

/// The pointers of all fields with this name.
std::vector<std::string> fields_named(std::string_view name) {
  std::vector<std::string> pointers;
  for (const Section& section : config_sections()) {
    if (const Field* field = find_field(section, name)) {
      pointers.push_back(field_pointer(section, *field));
    }
  }
  return pointers;
}

/// A key as a token of a JSON pointer, fit for one line.
std::string pointer_token(std::string_view key) {
  std::string token;
  const std::string printable = in_quotes(key);
  for (const char c : std::string_view(printable).substr(1, printable.size() - 2)) {
    token += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  }
  return token;
}

/// Collects what the file and the overrides say, then makes a Config of it, or throws every issue.
class ConfigParser {
 public:
  explicit ConfigParser(std::string name) : name_(std::move(name)) {}

  void read_text(const std::string& text) {
    try {
      const JsonValue root = parse_json(text);
      if (root.kind != JsonValue::Kind::kObject) {
        report("", root.at, "expected an object {…}, found " + describe(root));
        return;
      }
      read_object(root, "");
    } catch (const JsonSyntaxError& error) {
      report("", error.at(), error.what());
    }
  }

  void read_override(const std::string& text) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) {
      report("", {}, "expected path=value, found " + in_quotes(text), true);
      return;
    }
    const std::string path = text.substr(0, equals), argument = text.substr(equals + 1);
    std::string pointer = "/" + path;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    const Section* section = find_section(pointer);
    if (section && section->on_off) pointer += "/enabled";
    const size_t slash = pointer.rfind('/');
    const std::string parent = pointer.substr(0, slash), key = pointer.substr(slash + 1);
    if (section && !section->on_off) {
      report(pointer, {}, "is a section; set one of its fields, " + path + ".NAME=value", true);
    } else if (const Section* owner = find_section(parent);
               const Field* field = owner ? find_field(*owner, key) : nullptr) {
      assigned_[pointer] = {field, {}, argument, true};
    } else {
      report_unknown_path(pointer);
    }
  }

  Config finish() {
    Config config;
    apply_preset(config);
    for (const auto& [pointer, assignment] : assigned_) {
      const std::string problem = read(assignment, config);
      if (!problem.empty()) report(pointer, assignment.at(), problem, assignment.from_argument);
    }
    resolve(config);
    for (const Contradiction& rule : find_contradictions(config)) report_contradiction(rule);
    if (!issues_.empty()) throw ConfigError(issues_text());
    return config;
  }

 private:
  struct Issue : ConfigIssue {
    bool from_argument = false;
  };

  static std::string read(const Assignment& assignment, Config& config) {
    return assignment.from_argument
               ? read_value(*assignment.field, std::string_view(assignment.argument), config)
               : read_value(*assignment.field, assignment.value, config);
  }

  void read_object(const JsonValue& object, const std::string& parent) {
    const Section* section = find_section(parent);
    std::map<std::string, JsonPosition> seen;
    for (const JsonMember& member : object.members) {
      const std::string pointer = parent + "/" + pointer_token(member.key);
      const auto [first, is_new] = seen.emplace(member.key, member.at);
      if (!is_new) {
        report(pointer, member.at,
               "duplicate key; it is at " + std::to_string(first->second.line) + ":" +
                   std::to_string(first->second.column) + " already");
        continue;
      }
      const Field* field = section ? find_field(*section, member.key) : nullptr;
      if (field) {
        assigned_[pointer] = {field, member.value, "", false};
      } else if (const Section* child = find_section(pointer)) {
        read_section(*child, member.value);
      } else {
        report(pointer, member.at, unknown_key(member.key, parent));
      }
    }
  }

  void read_section(const Section& section, const JsonValue& value) {
    const std::string pointer(section.pointer);
    if (value.kind == JsonValue::Kind::kObject) {
      read_object(value, pointer);
    } else if (section.on_off && value.kind == JsonValue::Kind::kBool) {
      assigned_[pointer + "/enabled"] = {find_field(section, "enabled"), value, "", false};
    } else {
      report(pointer, value.at,
             std::string("expected an object {…}") + (section.on_off ? ", true or false" : "") +
                 ", found " + describe(value));
    }
  }

  static std::string unknown_key(const std::string& key, const std::string& parent) {
    const std::vector<std::string> elsewhere = fields_named(key);
    if (!elsewhere.empty()) return "unknown key here; it belongs at " + elsewhere.front();
    return "unknown key" + did_you_mean(key, keys_of(parent));
  }

  void report_unknown_path(const std::string& pointer) {
    const size_t slash = pointer.rfind('/');
    std::string parent = pointer.substr(0, slash), key = pointer.substr(slash + 1);
    while (!parent.empty() && !find_section(parent)) {
      key = parent.substr(parent.rfind('/') + 1);
      parent.resize(parent.rfind('/'));
    }
    report(parent + "/" + pointer_token(key), {}, unknown_key(key, parent), true);
  }

  /// Presets are defaults: they go in before anything else is read.
  void apply_preset(Config& config) const {
    const auto stated = assigned_.find("/model/preset");
    if (stated == assigned_.end()) return;
    Config probe;
    if (!read(stated->second, probe).empty()) return;  // reported when all fields are read
    for (const Preset& preset : model_presets()) {
      if (preset.name != probe.model.preset) continue;
      config.model.layers = preset.layers;
      config.model.channels = preset.channels;
      config.model.heads = preset.heads;
      config.model.ffn_hidden = preset.ffn_hidden;
      config.model.vocab_size = preset.vocab_size;
    }
  }

  /// At the first field involved that the user stated; nowhere when a field has an issue already.
  void report_contradiction(const Contradiction& rule) {
    if (!rule.if_stated.empty() && !assigned_.contains(rule.if_stated)) return;
    const Assignment* blamed = nullptr;
    for (const std::string& pointer : rule.pointers) {
      for (const Issue& issue : issues_) {
        if (issue.pointer == pointer) return;
      }
      const auto stated = assigned_.find(pointer);
      if (!blamed && stated != assigned_.end()) blamed = &stated->second;
    }
    report(rule.pointers.front(), blamed ? blamed->at() : JsonPosition{}, rule.message,
           blamed && blamed->from_argument);
  }

  void report(const std::string& pointer, JsonPosition at, const std::string& message,
              bool from_argument = false) {
    Issue issue;
    issue.pointer = pointer;
    issue.line = at.line;
    issue.column = at.column;
    issue.message = message;
    issue.from_argument = from_argument;
    issues_.push_back(std::move(issue));
  }

  /// In the order of the file, then those of --set.
  std::string issues_text() {
    std::stable_sort(issues_.begin(), issues_.end(), [](const Issue& a, const Issue& b) {
      return std::tie(a.from_argument, a.line, a.column) <
             std::tie(b.from_argument, b.line, b.column);
    });
    std::string text;
    for (const Issue& issue : issues_) {
      if (!text.empty()) text += "\n";
      text += issue.from_argument ? "--set" : name_;
      if (issue.line > 0) {
        text += ":" + std::to_string(issue.line) + ":" + std::to_string(issue.column);
      }
      if (!issue.pointer.empty()) text += ": " + issue.pointer;
      text += ": " + issue.message;
    }
    return text;
  }

  std::string name_;
  std::map<std::string, Assignment> assigned_;  ///< by JSON pointer
  std::vector<Issue> issues_;
};

std::string read_file(const std::string& path) {
  constexpr std::streamsize kMax = 1 << 20;
  std::ifstream file(path, std::ios::binary);
  std::string text(kMax + 1, '\0');
  if (!file.read(text.data(), kMax + 1) && !file.eof()) {
    throw ConfigError(path + ": cannot be read: " + std::strerror(errno));
  }
  if (file.gcount() > kMax) throw ConfigError(path + ": is larger than 1 MiB; not a config");
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

/// With what stands for "as another field" written out, so that equal models compare equal.
Config spelt_out(const Config& config) {
  Config copy = config;
  copy.model.kv_heads = config.model.resolved_kv_heads();
  copy.model.head_dim = config.model.resolved_head_dim();
  copy.model.rope_dims = config.model.resolved_rope_dims();
  return copy;
}

}  // namespace

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_config(read_file(path), path, overrides);
}

Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& overrides) {
  ConfigParser parser(name);
  parser.read_text(text);
  for (const std::string& assignment : overrides) parser.read_override(assignment);
  return parser.finish();
}

std::string dump_config(const Config& config) {
  Json root = Json::object();
  for (const Section& section : config_sections()) {
    Json& object = root[Json::json_pointer(std::string(section.pointer))];
    for (const Field& field : section.fields) object[field.name] = value_json(field, config);
  }
  return root.dump(2) + "\n";
}

std::vector<std::string> frozen_differences(const Config& saved, const Config& now) {
  const Config before = spelt_out(saved), after = spelt_out(now);
  std::vector<std::string> lines;
  for (const Section& section : config_sections()) {
    for (const Field& field : section.fields) {
      if (!field.frozen) continue;
      const Json old_value = value_json(field, before), new_value = value_json(field, after);
      if (old_value == new_value) continue;
      lines.push_back(field_pointer(section, field) + ": " + old_value.dump() + " -> " +
                      new_value.dump());
    }
  }
  return lines;
}

}  // namespace stablemask
