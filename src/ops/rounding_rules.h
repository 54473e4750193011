#pragma once

#include <cstdint>

#include "src/ops/sampling_rules.h"

/// Stochastic rounding of AdamW's moments to bf16 (ops/optimizer.h), the same on the CPU and in
/// CUDA kernels. The random bits of an element are a function of seed, step and index, so that the
/// order of the elements and their distribution over threads and processes do not matter.
namespace stablemask::ops::rounding {

constexpr uint32_t kInfinity = 0x7f800000, kNan = 0x7fc00000, kLargest = 0x7f7fffff;

/// Of all elements in one update.
struct Key {
  uint32_t first, second;
};

/// A number of the SplitMix64 generator that starts at a number of the seed.
STABLEMASK_BOTH Key key_of(int64_t seed, int64_t step) {
  constexpr uint64_t kNext = 0x9E3779B97F4A7C15ull;
  const uint64_t start = sampling::mixed(static_cast<uint64_t>(seed) + kNext);
  const uint64_t number = sampling::mixed(start + static_cast<uint64_t>(step) * kNext);
  return {static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32)};
}

/// 32 random bits of an element: the low 16 round m, the high 16 round v. A bijective hash of the
/// index's low 32 bits: shifts and factors are those of C. Wellons, "Prospecting for hash
/// functions" (triple32), the key is added before the first two factors. With two factors
/// (lowbias32) correlations of neighbours and frequencies over 2^20 elements are not those of
/// independent bits.
STABLEMASK_BOTH uint32_t bits_of(const Key& key, uint64_t element) {
  uint32_t x = static_cast<uint32_t>(element) + key.first +
               static_cast<uint32_t>(element >> 32) * 0x9E3779B9u;
  x = (x ^ (x >> 17)) * 0xed5ad4bbu;
  x = ((x ^ (x >> 11)) + key.second) * 0xac4c1b51u;
  x = (x ^ (x >> 15)) * 0x31848babu;
  return x ^ (x >> 14);
}

/// Bits of the bf16 number next to x towards 0, or away from it if the low 16 bits of x and
/// `random` < 2^16 add up to 2^16: with the probability that makes the mean x. Beyond the largest
/// bf16 number it is that one; an infinity stays one, NaN becomes the quiet NaN.
STABLEMASK_BOTH uint16_t bf16_of(float x, uint32_t random) {
  const uint32_t bits = sampling::bits_as<uint32_t>(x), size = bits & 0x7fffffffu;
  const uint32_t sum = size + random;
  const uint32_t finite = sum < kLargest ? sum : kLargest;
  const uint32_t rounded = size < kInfinity ? finite : size > kInfinity ? kNan : kInfinity;
  return static_cast<uint16_t>(((bits & 0x80000000u) | rounded) >> 16);
}

}  // namespace stablemask::ops::rounding
