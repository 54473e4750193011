#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "stablemask/base/json_source.h"
#include "stablemask/config/model_config.h"

/// JSON form of model.rope_scaling as an object. Linear scaling is written as a number.
namespace stablemask {

/// {"kind": "linear", "factor"}, …: each kind with its keys.
std::string rope_scaling_forms();

/// Reads an object. Returns "", or what is wrong with it.
std::string read_rope_scaling(const JsonValue& object, RopeScaling* out);

nlohmann::ordered_json rope_scaling_json(const RopeScaling& scaling);
nlohmann::ordered_json rope_scaling_schema();

}  // namespace stablemask
