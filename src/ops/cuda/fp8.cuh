#pragma once

#include <cuda_fp8.h>

#include <cstdint>

/// FP8 numbers in registers, for the kernels that write them.
namespace stablemask::ops::cuda {

/// Two numbers x · scale in FP8, the first in the lower byte: clipped; NaN where x is not finite.
/// `bits` is raised to the bits of the largest |x|, of which NaN's are the largest.
__device__ __forceinline__ uint32_t to_fp8_pair(float2 x, float scale,
                                                __nv_fp8_interpretation_t format, uint32_t& bits) {
  const auto scaled = [&](float number) {
    const uint32_t size = __float_as_uint(number) & 0x7fffffffu;
    bits = max(bits, size);
    return size < 0x7f800000u ? number * scale : __uint_as_float(0x7fc00000u);
  };
  const float2 pair = {scaled(x.x), scaled(x.y)};
  return __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, format);
}

/// Raises *maximum, which is not negative, to the largest of the warp's `bits`; the bits of such
/// numbers are ordered like the numbers. All lanes call it.
__device__ __forceinline__ void raise_maximum(float* maximum, uint32_t bits) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, offset));
  }
  auto* known = reinterpret_cast<uint32_t*>(maximum);
  if (threadIdx.x % 32 == 0 && bits > *static_cast<volatile uint32_t*>(known)) {
    atomicMax(known, bits);
  }
}

}  // namespace stablemask::ops::cuda
