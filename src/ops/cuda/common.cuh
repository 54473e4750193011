#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "src/ops/cuda/launchers.h"

/// Shared by the kernels. Device: 16-byte packs, conversions, reductions in a fixed order. Host:
/// dispatch on element type and pack width, grid sizes.

namespace stablemask::ops::cuda {

using bf16 = __nv_bfloat16;

/// n neighbouring elements, moved by accesses of up to 16 bytes.
template <typename T, int n>
struct alignas(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Pack {
  T data[n];
};

/// Elements in a 16-byte access.
template <typename T>
inline constexpr int kFullPack = 16 / sizeof(T);

template <int n, typename T>
__device__ __forceinline__ Pack<T, n> load(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}

template <int n, typename T>
__device__ __forceinline__ void store(T* to, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(to) = pack;
}

/// Store with the evict-first hint, for data that is not read again soon.
template <typename T, int n>
__device__ __forceinline__ void store_streaming(T* to, const Pack<T, n>& pack) {
  if constexpr (sizeof(pack) == 16) {
    __stcs(reinterpret_cast<float4*>(to), *reinterpret_cast<const float4*>(&pack));
  } else if constexpr (sizeof(pack) == 8) {
    __stcs(reinterpret_cast<float2*>(to), *reinterpret_cast<const float2*>(&pack));
  } else {
    static_assert(n == 1);
    __stcs(to, pack.data[0]);
  }
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// Converts n floats to a pack. bf16 is rounded in pairs: one instruction for two numbers.
template <typename T, int n>
__device__ __forceinline__ Pack<T, n> pack(const float (&x)[n]) {
  Pack<T, n> result;
  if constexpr (std::is_same_v<T, bf16> && n % 2 == 0) {
#pragma unroll
    for (int k = 0; k < n; k += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[k], x[k + 1]);
      result.data[k] = pair.x;
      result.data[k + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k) result.data[k] = from_float<T>(x[k]);
  }
  return result;
}

/// exp with the accuracy that T needs: for bf16 the approximate instruction, which flushes
/// denormals.
template <typename T>
__device__ __forceinline__ float exp_as(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    constexpr float kLog2E = 1.4426950408889634f;
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * kLog2E));
    return result;
  }
}

template <typename T>
__device__ __forceinline__ float sigmoid_as(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return 1.0f / (1.0f + expf(-x));
  } else {
    return __fdividef(1.0f, 1.0f + exp_as<T>(-x));
  }
}

/// The sum over the warp, in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

template <typename T>
struct Type {
  using type = T;
};

/// Calls f(Type<T>) with the element type of `dtype`.
template <typename F>
cudaError_t with_type(DType dtype, F&& f) {
  return dtype == DType::kBFloat16 ? f(Type<bf16>{}) : f(Type<float>{});
}

/// Calls f(Type<T>, Type<W>), W the weight's type: T or float.
template <typename F>
cudaError_t with_types(DType dtype, DType weight_dtype, F&& f) {
  if (dtype == DType::kFloat32) {
    if (weight_dtype != DType::kFloat32) return cudaErrorInvalidValue;
    return f(Type<float>{}, Type<float>{});
  }
  if (weight_dtype == DType::kFloat32) return f(Type<bf16>{}, Type<float>{});
  return f(Type<bf16>{}, Type<bf16>{});
}

/// Calls f(integral_constant) with 16-byte packs of T where `whole`, else with single elements.
template <typename T, typename F>
cudaError_t with_pack(bool whole, F&& f) {
  return whole ? f(std::integral_constant<int, kFullPack<T>>{})
               : f(std::integral_constant<int, 1>{});
}

/// Whether every pointer is 16-byte aligned; null counts as aligned.
template <typename... Pointers>
bool aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

template <typename T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

/// Block size for `items` parallel items: a multiple of 32, at most `limit`, such that the blocks
/// cover almost equal numbers of items.
inline int block_size(int64_t items, int limit) {
  const int64_t tiles = ceil_div<int64_t>(items, limit);
  return static_cast<int>(ceil_div<int64_t>(ceil_div<int64_t>(items, tiles), 32) * 32);
}

/// An attribute of the current device.
inline cudaError_t device_attribute(cudaDeviceAttr attribute, int* value) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error : cudaDeviceGetAttribute(value, attribute, device);
}

}  // namespace stablemask::ops::cuda
