#include "src/data/samples.h"

#include <algorithm>
#include <array>
#include <utility>

#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

using Kind = JsonValue::Kind;

/// A role of a conversation and the name before its turns.
struct Role {
  std::string_view role, name;
};
constexpr std::array<Role, 3> kRoles{
    {{"system", "System:"}, {"user", "User:"}, {"assistant", "Assistant:"}}};
const Role& kAssistant = kRoles[2];

/// The member of an object. Throws SampleProblem when there is none, or more than one. `where`: ""
/// or the object's place, for messages.
const JsonValue& member(const JsonValue& object, std::string_view key, std::string_view where) {
  const JsonValue* found = nullptr;
  for (const JsonMember& one : object.members) {
    if (one.key != key) continue;
    if (found != nullptr) {
      throw SampleProblem(std::string(where) + "states the field " + in_quotes(std::string(key)) +
                          " twice");
    }
    found = &one.value;
  }
  if (found == nullptr) {
    throw SampleProblem(std::string(where) + "has no field " + in_quotes(std::string(key)));
  }
  return *found;
}

void require_kind(const JsonValue& value, Kind kind, const std::string& what) {
  if (value.kind == kind) return;
  throw SampleProblem(what + " is of type " + kind_name(value.kind) + ", not " +
                      (kind == Kind::kString  ? "a string"
                       : kind == Kind::kArray ? "an array"
                                              : "an object"));
}

const std::string& text_member(const JsonValue& object, std::string_view key,
                               std::string_view where) {
  const JsonValue& value = member(object, key, where);
  require_kind(value, Kind::kString,
               std::string(where) + "the field " + in_quotes(std::string(key)));
  return value.text;
}

std::vector<SamplePart> read_prompt(const JsonValue& object) {
  const std::string& prompt = text_member(object, "prompt", "");
  const std::string& completion = text_member(object, "completion", "");
  if (completion.empty()) throw SampleProblem("its completion is empty: nothing to train on");
  return {{prompt, false}, {completion, true}};
}

const Role& role_of(const std::string& name, std::string_view where) {
  const auto* const found =
      std::ranges::find_if(kRoles, [&](const Role& one) { return one.role == name; });
  if (found != kRoles.end()) return *found;
  throw SampleProblem(std::string(where) + "the role " + in_quotes(name) +
                      " is unknown; it is system, user or assistant");
}

/// Turns after the assistant's last one are left out: nothing after them is trained on.
std::vector<SamplePart> read_turns(const JsonValue& object) {
  const JsonValue& messages = member(object, "messages", "");
  require_kind(messages, Kind::kArray, "the field \"messages\"");
  std::vector<SamplePart> parts;
  std::string untrained;
  for (size_t i = 0; i < messages.items.size(); ++i) {
    const std::string where = format("message %zu: ", i + 1);
    const JsonValue& message = messages.items[i];
    require_kind(message, Kind::kObject, where + "it");
    const Role& role = role_of(text_member(message, "role", where), where);
    const std::string& content = text_member(message, "content", where);
    untrained += role.name;
    if (role.role != kAssistant.role) {
      untrained += ' ' + content + '\n';
      continue;
    }
    if (content.empty()) {
      throw SampleProblem(where + "the assistant's answer is empty: nothing to train on");
    }
    parts.push_back({std::exchange(untrained, "\n"), false});
    parts.push_back({' ' + content, true});
  }
  if (parts.empty()) throw SampleProblem("no message is the assistant's: nothing to train on");
  return parts;
}

}  // namespace

const char* template_name(SampleTemplate form) {
  return form == SampleTemplate::kPrompt ? "prompt" : "turns";
}

std::vector<SamplePart> read_sample(std::string_view json, SampleTemplate form) {
  const JsonValue object = parse_json(json);
  require_kind(object, Kind::kObject, "the line");
  return form == SampleTemplate::kPrompt ? read_prompt(object) : read_turns(object);
}

bool has_key(std::string_view json, std::string_view key) try {
  const JsonRecord record = read_json_record(json, key);
  return record.field.has_value();
} catch (const JsonSyntaxError&) {
  return false;  // reading the line reports it
}

std::optional<SampleTemplate> template_of(std::string_view json) {
  if (has_key(json, "messages")) return SampleTemplate::kTurns;
  if (has_key(json, "prompt") && has_key(json, "completion")) return SampleTemplate::kPrompt;
  return std::nullopt;
}

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kNull:
      return "null";
    case Kind::kBool:
      return "boolean";
    case Kind::kInteger:
    case Kind::kNumber:
      return "number";
    case Kind::kString:
      return "string";
    case Kind::kArray:
      return "array";
    case Kind::kObject:
      break;
  }
  return "object";
}

}  // namespace stablemask
