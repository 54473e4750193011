#pragma once

#include "stablemask/config/model_config.h"

namespace stablemask::bench {

inline const char* mask_name(const StableMaskConfig& mask) {
  if (!mask.enabled) return "causal";
  return mask.mask_length.kind == MaskLengthSpec::Kind::kInfinite ? "infinite" : "stablemask";
}

inline const char* position_name(Position position) {
  if (position == Position::kNone) return "none";
  if (position == Position::kLearned) return "learned";
  return position == Position::kRope ? "rope" : "alibi";
}

}  // namespace stablemask::bench
