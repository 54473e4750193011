#include "src/config/config_reader.h"

#include <algorithm>

#include "src/config/config_values.h"
#include "src/config/foreign_keys.h"
#include "src/config/migrations.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

constexpr std::string_view kVersion = "version";

/// A key as a token of a JSON pointer, on one line.
std::string pointer_token(std::string_view key) {
  std::string token;
  const std::string printable = in_quotes(key);
  for (const char c : std::string_view(printable).substr(1, printable.size() - 2)) {
    token += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  }
  return token;
}

ValueSource in_file(JsonPosition at) { return {at, ""}; }

}  // namespace

std::string StatedValue::read_into(Config& config) const {
  return source.set.empty() ? read_value(*field, json, config)
                            : read_value(*field, std::string_view(argument), config);
}

void ConfigReader::read(const std::string& text, const std::vector<std::string>& overrides) {
  read_text(text);
  for (const std::string& assignment : overrides) read_override(assignment);
}

void ConfigReader::read_text(const std::string& text) {
  try {
    JsonValue root = parse_json(text);
    if (root.kind != JsonValue::Kind::kObject) {
      issues_.add("", {in_file(root.at)}, "expected an object {…}, found " + describe(root));
      return;
    }
    read_version(root);
    read_object(root, "");
  } catch (const JsonSyntaxError& error) {
    issues_.add("", {in_file(error.at())}, error.what());
  }
}

/// Checks the format version and migrates an older config.
void ConfigReader::read_version(JsonValue& root) {
  int64_t version = 0;
  Behaviour behaviour = origin_ == Origin::kSaved ? Behaviour::kOfItsVersion : Behaviour::kOfToday;
  for (const JsonMember& member : root.members) {
    if (member.key != kVersion) continue;
    const JsonValue& value = member.value;
    if (value.kind != JsonValue::Kind::kInteger || value.integer < 0) {
      issues_.add("/version", {in_file(value.at)},
                  format("expected an integer from 0 to %lld, the format version of the config, "
                         "found %s",
                         static_cast<long long>(kConfigVersion), describe(value).c_str()));
      return;
    }
    version = value.integer;
    behaviour = Behaviour::kOfItsVersion;
    break;
  }
  if (version > kConfigVersion) {
    throw ConfigError(name_ + format(": has config version %lld; this program reads up to version "
                                     "%lld: use a newer stablemask",
                                     static_cast<long long>(version),
                                     static_cast<long long>(kConfigVersion)));
  }
  migrate(root, version, behaviour);
}

void ConfigReader::read_object(const JsonValue& object, const std::string& parent) {
  const Section* section = find_section(parent);
  std::map<std::string, JsonPosition> seen;
  for (const JsonMember& member : object.members) {
    const std::string pointer = parent + "/" + pointer_token(member.key);
    const auto [first, is_new] = seen.emplace(member.key, member.at);
    if (!is_new) {
      issues_.add(pointer, {in_file(member.at)},
                  "duplicate key, first stated at " + std::to_string(first->second.line) + ":" +
                      std::to_string(first->second.column) + "; remove one of them");
      continue;
    }
    if (parent.empty() && member.key == kVersion) continue;
    const Field* field = section ? find_field(*section, member.key) : nullptr;
    if (field) {
      stated_[pointer] = {field, in_file(member.value.at), member.value, ""};
    } else if (const Section* child = find_section(pointer)) {
      read_section(*child, member.value);
    } else {
      issues_.add(pointer, {in_file(member.at)}, unknown_key(member.key, parent));
    }
  }
}

void ConfigReader::read_section(const Section& section, const JsonValue& value) {
  const std::string pointer(section.pointer);
  if (value.kind == JsonValue::Kind::kObject) {
    read_object(value, pointer);
  } else if (section.on_off && value.kind == JsonValue::Kind::kBool) {
    stated_[pointer + "/enabled"] = {find_field(section, "enabled"), in_file(value.at), value, ""};
  } else {
    std::string message = std::string("expected an object {…}") +
                          (section.on_off ? ", true or false" : "") + ", found " + describe(value);
    if (value.kind == JsonValue::Kind::kString && find_field(section, "kind")) {
      message += "; write {\"kind\": " + describe(value) + "}";
    }
    issues_.add(pointer, {in_file(value.at)}, message);
  }
}

void ConfigReader::read_override(const std::string& text) {
  const ValueSource source{{}, text.empty() ? "\"\"" : text};
  if (const size_t bad = find_invalid_utf8(text); bad != std::string::npos) {
    issues_.add("", {source},
                format("byte %zu (0x%02X) is not UTF-8; pass the argument as UTF-8 text", bad + 1,
                       static_cast<unsigned>(static_cast<unsigned char>(text[bad]))));
    return;
  }
  const size_t equals = text.find('=');
  if (equals == std::string::npos) {
    issues_.add("", {source}, "expected path=value, such as train.steps=100");
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
    issues_.add(pointer, {source}, "is a section; set one of its fields, " + path + ".NAME=value");
  } else if (path == kVersion) {
    issues_.add(pointer, {source}, "is the format version of the file; it cannot be set");
  } else if (const Section* owner = find_section(parent);
             const Field* field = owner ? find_field(*owner, key) : nullptr) {
    stated_[pointer] = {field, source, {}, argument};
  } else {
    report_unknown_path(pointer, source);
  }
}

/// At the first part of the path that has no section or field.
void ConfigReader::report_unknown_path(const std::string& pointer, const ValueSource& source) {
  const size_t slash = pointer.rfind('/');
  std::string parent = pointer.substr(0, slash), key = pointer.substr(slash + 1);
  while (!parent.empty() && !find_section(parent)) {
    key = parent.substr(parent.rfind('/') + 1);
    parent.resize(parent.rfind('/'));
  }
  issues_.add(parent + "/" + pointer_token(key), {source}, unknown_key(key, parent));
}

}  // namespace stablemask
