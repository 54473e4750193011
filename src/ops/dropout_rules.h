#pragma once

#include <cstdint>

#include "src/ops/sampling_rules.h"

/// Which elements ops::Dropout sets to 0, the same on the CPU and in CUDA kernels: number i of the
/// SplitMix64 generator that key and stream seed decides about element i.
namespace stablemask::ops::dropout {

constexpr uint64_t kStep = 0x9E3779B97F4A7C15ull;

STABLEMASK_BOTH uint64_t seed_of(int64_t key, int64_t stream) {
  return sampling::mixed(static_cast<uint64_t>(key) + (static_cast<uint64_t>(stream) + 1) * kStep);
}

/// `share` as a threshold of the upper 32 bits of a number.
inline uint32_t threshold_of(double share) {
  const double limit = share * 4294967296.0 + 0.5;
  return limit >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(limit);
}

STABLEMASK_BOTH bool keeps(uint64_t seed, int64_t element, uint32_t threshold) {
  const uint64_t number = sampling::mixed(seed + (static_cast<uint64_t>(element) + 1) * kStep);
  return static_cast<uint32_t>(number >> 32) >= threshold;
}

}  // namespace stablemask::ops::dropout
