#pragma once

#include <nlohmann/json_fwd.hpp>

#include "src/interop/families.h"
#include "src/interop/field_reader.h"

namespace stablemask::interop {

/// How a family spells the fields of RoPE in transformers 4.
struct RopeNames {
  const char* theta = "rope_theta";
  const char* partial = "partial_rotary_factor";
  /// Share of a head's dimensions that are rotated where config.json does not say; of a family that
  /// rotates all in any case, 0.
  double default_partial = 0.0;
};

/// Reads theta and rope_scaling (transformers 4) or rope_parameters (transformers 5) into the
/// model's fields of RoPE. Where both are stated they must agree. The model's head size and
/// `external.context` are set before.
void read_rope(FieldReader& fields, ExternalModel& external, const RopeNames& names = {});

/// Writes both spellings.
void write_rope(const ExternalModel& external, nlohmann::ordered_json& json,
                const RopeNames& names = {});

}  // namespace stablemask::interop
