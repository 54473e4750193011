#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/json_source.h"

namespace stablemask {

/// How a sample of instruction data becomes text; docs/instruction_data.md states both forms.
enum class SampleTemplate : uint8_t {
  kPrompt,  ///< {"prompt", "completion"}: one after the other, as they are
  kTurns,   ///< {"messages": [{"role", "content"}]}: "User: …\nAssistant: …"
};

/// "prompt" or "turns", as in a shard's header.
const char* template_name(SampleTemplate form);

/// A part of a sample's text. A trained part ends with the end-of-text id, which is trained too.
struct SamplePart {
  std::string text;
  bool trained;
};

/// The reason why a line holds no sample, without the line's number.
class SampleProblem : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The parts of the sample that a line of JSONL in valid UTF-8 holds; the last one is trained, and
/// no trained part is empty. Fields other than those of the template are not read. Throws
/// SampleProblem, and JsonSyntaxError as parse_json does.
std::vector<SamplePart> read_sample(std::string_view json, SampleTemplate form);

/// The template that a line of JSONL asks for by the names of its fields; nullopt: none.
std::optional<SampleTemplate> template_of(std::string_view json);

/// Whether a line of JSONL is an object with this field.
bool has_key(std::string_view json, std::string_view key);

/// "string", "object" and so on, for messages.
const char* kind_name(JsonValue::Kind kind);

}  // namespace stablemask
