#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "src/config/config_fields.h"
#include "stablemask/base/json_source.h"

/// How the value of one field looks in JSON: reading, writing, describing it.
namespace stablemask {

/// Reads `value` into the field. Returns what is wrong with it; then the field keeps its value. "":
/// nothing is.
std::string read_value(const Field& field, const JsonValue& value, Config& config);

/// As read_value, from the right-hand side of --set: JSON, but text needs no quotes, and one path
/// stands for a list of one.
std::string read_value(const Field& field, std::string_view text, Config& config);

nlohmann::ordered_json value_json(const Field& field, const Config& config);

/// "an integer from 1 to 1024", "one of "rope", "alibi", "none"".
std::string expectation(const Field& field);

/// JSON Schema of the value, without default and description.
nlohmann::ordered_json value_schema(const Field& field);

}  // namespace stablemask
