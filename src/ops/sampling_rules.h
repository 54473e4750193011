#pragma once

#include <cstdint>
#include <cstring>

/// The arithmetic of ops::sample, the same on the CPU and in CUDA kernels. An id's probability is
/// an integer, its mass: 2^40 · exp((x − max) / T), rounded. Sums of masses are exact in 64 bits,
/// so they depend neither on their order nor on the device. The fp64 operations below are single
/// rounded ones in a fixed order and never fused, so a mass has the same bits everywhere.
#ifdef __CUDACC__
#define STABLEMASK_BOTH __host__ __device__ __forceinline__
#else
#define STABLEMASK_BOTH inline
#endif

namespace stablemask::ops::sampling {

constexpr uint64_t kOne = uint64_t{1} << 40;              ///< the likeliest id's mass
constexpr int64_t kLargestVocabulary = int64_t{1} << 22;  ///< sums of masses stay below 2^62

#ifdef __CUDA_ARCH__
STABLEMASK_BOTH double times(double a, double b) { return __dmul_rn(a, b); }
STABLEMASK_BOTH double plus(double a, double b) { return __dadd_rn(a, b); }
STABLEMASK_BOTH double over(double a, double b) { return __ddiv_rn(a, b); }
#else
STABLEMASK_BOTH double times(double a, double b) { return a * b; }
STABLEMASK_BOTH double plus(double a, double b) { return a + b; }
STABLEMASK_BOTH double over(double a, double b) { return a / b; }
#endif

template <typename To, typename From>
STABLEMASK_BOTH To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

STABLEMASK_BOTH bool finite(float x) { return (bits_as<uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }

/// A logit of an id that is in the sequence so far, rounded to fp32.
STABLEMASK_BOTH float penalized(float x, double penalty) {
  constexpr double kMost = 3.4028234663852886e38;
  const double y = x > 0 ? over(x, penalty) : times(x, penalty);
  return static_cast<float>(y > kMost ? kMost : y < -kMost ? -kMost : y);
}

/// Integers in the order of finite x; −0 and +0 are equal.
STABLEMASK_BOTH uint32_t ordered(float x) {
  const uint32_t bits = bits_as<uint32_t>(x == 0 ? 0.0f : x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

STABLEMASK_BOTH float from_ordered(uint32_t key) {
  return bits_as<float>(key >> 31 ? key & 0x7fffffffu : ~key);
}

/// Integers in the order of likelihood: the larger logit, of equal ones the lower id.
STABLEMASK_BOTH uint64_t likelihood(float x, int64_t id) {
  return uint64_t{ordered(x)} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

STABLEMASK_BOTH int64_t id_of(uint64_t likelihood) {
  return 0xffffffffu - static_cast<uint32_t>(likelihood);
}

STABLEMASK_BOTH float logit_of(uint64_t likelihood) {
  return from_ordered(static_cast<uint32_t>(likelihood >> 32));
}

/// What multiplies a distance of logits to give the binary logarithm of a ratio of probabilities.
STABLEMASK_BOTH double steepness(double temperature) {
  const double factor = over(1.4426950408889634, temperature);
  return factor < 1e300 ? factor : 1e300;
}

/// From this number of halvings on, a mass is 0.
constexpr double kHalvings = 41.0;

STABLEMASK_BOTH double halvings(float x, float highest, double steep) {
  return times(plus(highest, -static_cast<double>(x)), steep);
}

/// 2^(−j/128).
struct Powers {
  static constexpr int kSize = 128;
  double of[kSize] = {};
  constexpr Powers() {
    for (int j = 0; j < kSize; ++j) {
      const double x = -0.6931471805599453 * j / kSize;
      double sum = 0;
      for (int k = 24; k > 0; --k) sum = (1 + sum) * x / k;
      of[j] = 1 + sum;
    }
  }
};

/// z in [0, 41] as a multiple of 2^−44, which is in the low 52 bits.
STABLEMASK_BOTH uint64_t fixed_halvings(double z) {
  return bits_as<uint64_t>(plus(256.0, z));  // numbers in [256, 512) are multiples of 2^−44
}

/// 2^(40 − z) as an integer, z = fixed_halvings(…). Before the last rounding the error is below
/// 2^−50 of the result and that of z's rounding below 2^−45, a thirtieth of the last unit; so
/// masses never rise with z.
STABLEMASK_BOTH uint64_t mass_of_fixed(uint64_t fixed, const double* powers) {
  constexpr uint64_t kRest = (uint64_t{1} << 37) - 1;
  const double r = plus(bits_as<double>(fixed), -bits_as<double>(fixed & ~kRest));
  double series = times(r, -0.0013333558146428443);
  series = times(r, plus(series, 0.009618129107628477));
  series = times(r, plus(series, -0.05550410866482158));
  series = times(r, plus(series, 0.24022650695910072));
  series = times(r, plus(series, -0.6931471805599453));
  const double fraction = times(powers[(fixed >> 37) & 127], plus(series, 1.0));
  const uint64_t whole = (fixed >> 44) & 63;
  const double scaled = times(fraction, bits_as<double>((1023 + 40 - whole) << 52));
  constexpr double kInteger = 4503599627370496.0;  // 2^52: adding it rounds to integers
  return bits_as<uint64_t>(plus(scaled, kInteger)) - bits_as<uint64_t>(kInteger);
}

STABLEMASK_BOTH uint64_t mass(double z, const double* powers) {
  return z < kHalvings ? mass_of_fixed(fixed_halvings(z), powers) : 0;
}

/// ⌈share · whole⌉ without rounding; 0 for share ≤ 0 or NaN, `whole` for share ≥ 1.
STABLEMASK_BOTH uint64_t share_of(double share, uint64_t whole) {
  if (!(share > 0)) return 0;
  if (share >= 1) return whole;
  const uint64_t bits = bits_as<uint64_t>(share);
  const auto exponent = static_cast<int>(bits >> 52);
  constexpr uint64_t kImplicit = uint64_t{1} << 52;
  const int shift = 1075 - exponent;  // share = mantissa · 2^−shift
  if (shift > 116) return whole > 0;
  const auto product = static_cast<unsigned __int128>((bits & (kImplicit - 1)) | kImplicit) * whole;
  const auto below = (static_cast<unsigned __int128>(1) << shift) - 1;
  return static_cast<uint64_t>((product + below) >> shift);
}

/// The finaliser of SplitMix64, as base/random.h has it.
STABLEMASK_BOTH uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

/// ⌊u · whole⌋ for number `drawn` of the seed.
STABLEMASK_BOTH uint64_t uniform_of(int64_t seed, int64_t drawn, uint64_t whole) {
  const uint64_t state =
      static_cast<uint64_t>(seed) + (static_cast<uint64_t>(drawn) + 1) * 0x9E3779B97F4A7C15ull;
  return static_cast<uint64_t>((static_cast<unsigned __int128>(mixed(state) >> 11) * whole) >> 53);
}

}  // namespace stablemask::ops::sampling
