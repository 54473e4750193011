#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "src/config/config_fields.h"
#include "stablemask/base/json_source.h"

/// The JSON form of a field's value: reading, writing, description, schema.
namespace stablemask {

/// Reads `value` into the field of `config`. Returns "", or an error message; the field is then
/// left unchanged.
std::string read_value(const Field& field, const JsonValue& value, Config& config);

/// The same from the right-hand side of --set: JSON, except that text needs no quotes and a single
/// text is accepted as a list of one.
std::string read_value(const Field& field, std::string_view text, Config& config);

nlohmann::ordered_json value_json(const Field& field, const Config& config);

/// "an integer from 1 to 1024", "one of "rope", "alibi", "none"".
std::string expectation(const Field& field);

/// JSON Schema of the value, without default and description.
nlohmann::ordered_json value_schema(const Field& field);

}  // namespace stablemask
