#pragma once

#include "src/ops/cuda/common.cuh"

/// fp32 weights as bf16 and int16 remainder (ops/optimizer.h, SplitWeights), in packs.

namespace stablemask::ops::cuda {

template <int n>
struct Split {
  Pack<uint16_t, n> rounded;
  Pack<int16_t, n> remainder;
};

template <int n>
__device__ __forceinline__ Pack<float, n> join(const Split<n>& split) {
  Pack<float, n> weights;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    weights.data[k] = __uint_as_float((uint32_t{split.rounded.data[k]} << 16) +
                                      static_cast<uint32_t>(int32_t{split.remainder.data[k]}));
  }
  return weights;
}

template <int n>
__device__ __forceinline__ Split<n> split(const Pack<float, n>& weights) {
  Split<n> result;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float w = weights.data[k];
    const uint32_t bits = w == w ? __float_as_uint(w) : 0x7fc00000u;
    result.rounded.data[k] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
    result.remainder.data[k] = static_cast<int16_t>(bits & 0xffffu);
  }
  return result;
}

/// Elements at … at + n − 1 of flat weights: fp32, or with kSplit bf16 and `remainder`.
template <bool kSplit, int n>
__device__ __forceinline__ Pack<float, n> load_weights(const void* weights,
                                                       const int16_t* remainder, int64_t at) {
  if constexpr (kSplit) {
    return join<n>({load<n>(static_cast<const uint16_t*>(weights) + at), load<n>(remainder + at)});
  } else {
    return load<n>(static_cast<const float*>(weights) + at);
  }
}

}  // namespace stablemask::ops::cuda
