#pragma once

#include "src/ops/cuda/common.cuh"
#include "src/ops/cuda/decode.h"
#include "src/ops/cuda/overlap.cuh"
#include "src/ops/pseudo_mass.h"

/// Shared by the kernels of ops::decode_attention (decode.cu describes the whole): the division of
/// the work and the new token.
namespace stablemask::ops::cuda::decoding {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 8;  ///< of a lane
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLowest = -1e30f;  ///< the largest of no scores; finite, so that differences are

template <typename T>
__device__ __forceinline__ float exp2_as(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return exp2f(x);
  } else {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
}

/// kColumns neighbouring elements as 32-bit words: elements of 16 bits would take a register each.
template <typename T>
struct Columns {
  static constexpr int kWords = kColumns * sizeof(T) / 4;
  Pack<uint32_t, kWords> words;

  __device__ __forceinline__ float operator[](int k) const {
    if constexpr (std::is_same_v<T, float>) {
      return __uint_as_float(words.data[k]);
    } else {
      const uint32_t pair = words.data[k / 2];
      return __uint_as_float(k % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
  }
};

/// Columns [first, first + kColumns) of a head; those from `dim` on are 0. kWhole: dim is a
/// multiple of kColumns and the address one of 16 bytes.
template <bool kWhole, typename T>
__device__ __forceinline__ Columns<T> load_columns(const T* head, int first, int dim) {
  Columns<T> result = {};
  if constexpr (kWhole) {
    constexpr int kWords = Columns<T>::kWords;
    if (first < dim) result.words = load<kWords>(reinterpret_cast<const uint32_t*>(head + first));
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      if (first + k >= dim) continue;
      if constexpr (std::is_same_v<T, float>) {
        result.words.data[k] = __float_as_uint(head[first + k]);
      } else {
        const uint32_t bits = __bfloat16_as_ushort(head[first + k]);
        result.words.data[k / 2] |= bits << (k % 2 * 16);
      }
    }
  }
  return result;
}

/// What a block works on.
struct Share {
  int64_t position;
  int kv_head, first_head, heads;  ///< of the query heads of the whole model
  int visible;                     ///< keys of the sequence, numbered from the oldest
  int begin, end;                  ///< keys of this block
  int active;                      ///< blocks of the cluster that have keys
  int oldest_slot;
  int64_t row;

  __device__ __forceinline__ bool has_newest() const { return end == visible; }
  __device__ __forceinline__ int slot(int key, int slots) const {
    const int slot = oldest_slot + key;
    return slot < slots ? slot : slot - slots;
  }
};

template <int kGroup>
__device__ __forceinline__ Share share_of(const Decode& p) {
  Share s{};
  const int group = p.heads / p.kv_heads;
  const int parts = (group + kGroup - 1) / kGroup;
  const int part = static_cast<int>(blockIdx.y) % parts;
  const auto b = static_cast<int>(blockIdx.z);
  s.position = p.positions[b];
  s.row = p.rows != nullptr ? p.rows[b] : b;
  s.kv_head = static_cast<int>(blockIdx.y) / parts;
  s.first_head = s.kv_head * group + part * kGroup;
  s.heads = min(kGroup, group - part * kGroup);
  if (s.position < 0) return s;
  const int64_t limit = p.window > 0 ? min(p.window, int64_t{p.slots}) : int64_t{p.slots};
  s.visible = static_cast<int>(min(s.position + 1, limit));
  const int64_t oldest = s.position + 1 - s.visible;
  s.oldest_slot = static_cast<int>(oldest < p.slots ? oldest : oldest % p.slots);
  const auto splits = static_cast<int>(gridDim.x);
  const int size = (s.visible + splits - 1) / splits;
  s.begin = min(static_cast<int>(blockIdx.x) * size, s.visible);
  s.end = min(s.begin + size, s.visible);
  s.active = (s.visible + size - 1) / size;
  return s;
}

/// Column `d` of a head of the new token, rotated.
template <typename T>
__device__ __forceinline__ float rotated(const Decode& p, const T* head, int d, int64_t position) {
  const float x = to_float(head[d]);
  if (d >= p.rope_dims) return x;
  if (position >= p.table_rows) return __int_as_float(0x7fc00000);
  const int half = p.rope_dims / 2;
  const bool first = d < half;
  const float* angles = p.table + position * p.rope_dims + (first ? d : d - half);
  const float y = to_float(head[first ? d + half : d - half]);
  const float sine = angles[half];
  return x * angles[0] + (first ? -y : y) * sine;
}

/// Query is float, times scale·log2(e), or T, not scaled.
template <typename T, typename Query, int kColumnsOfHead, int kMostHeads>
struct Shared {
  static constexpr int kDim = kColumnsOfHead;
  static constexpr int kGroup = kMostHeads;
  alignas(16) Query query[kGroup][kDim];
  alignas(16) T key[kDim], value[kDim];  ///< of the new token
  float log_mass[kGroup];                ///< log2 S
  float warp_largest[kWarps][kGroup], warp_sum[kWarps][kGroup];
  alignas(16) float warp_out[kWarps][kGroup][kDim];
  float largest[kGroup], sum[kGroup];  ///< of the block
  float out[kGroup][kDim];
};

/// Fills log_mass.
template <typename T, typename Query, int kDim, int kGroup>
__device__ __forceinline__ void compute_mass(const Decode& p, const Share& s,
                                             Shared<T, Query, kDim, kGroup>& shared) {
  const int head = static_cast<int>(threadIdx.x) - (kThreads - kGroup);
  if (head < 0) return;
  float mass = -INFINITY;
  if (p.gamma != nullptr && head < s.heads) {
    mass = log_mass_at(p.gamma[s.first_head + head], p.p_base[s.first_head + head], s.position,
                       p.mask_length, p.infinite_beyond);
  }
  shared.log_mass[head] = mass * kLog2E;
}

/// Fills query, key and value, and writes key and value into the cache.
template <typename T, typename Query, int kDim, int kGroup>
__device__ __forceinline__ void prepare(const Decode& p, const Share& s,
                                        Shared<T, Query, kDim, kGroup>& shared) {
  const float scale = std::is_same_v<Query, float> ? p.scale * kLog2E : 1.0f;
  const int64_t packed_heads = p.heads + 2 * p.kv_heads;
  const T* token = static_cast<const T*>(p.packed) + blockIdx.z * packed_heads * p.dim;
  const int slot = s.slot(s.visible - 1, p.slots);
  const bool writes = s.first_head % (p.heads / p.kv_heads) == 0;
  const int vectors = kGroup + (s.has_newest() ? 2 : 0);
  for (int i = threadIdx.x; i < vectors * kDim; i += kThreads) {
    const int vector = i / kDim;
    const int d = i % kDim;
    const bool inside = d < p.dim;
    if (vector < kGroup) {
      const T* head = token + (s.first_head + vector) * p.dim;
      const bool used = inside && vector < s.heads;
      const float x = used ? rotated(p, head, d, s.position) * scale : 0.0f;
      shared.query[vector][d] = from_float<Query>(x);
      continue;
    }
    const bool is_key = vector == kGroup;
    const T* head = token + (p.heads + s.kv_head + (is_key ? 0 : p.kv_heads)) * p.dim;
    float x = 0.0f;
    if (inside) x = is_key ? rotated(p, head, d, s.position) : to_float(head[d]);
    (is_key ? shared.key : shared.value)[d] = from_float<T>(x);
    if (!inside || !writes) continue;
    const int64_t* strides = is_key ? p.key_strides : p.value_strides;
    T* cache = static_cast<T*>(is_key ? p.keys : p.values);
    cache[s.row * strides[0] + slot * strides[1] + s.kv_head * strides[2] + d] = from_float<T>(x);
  }
}

/// Whether the block has nothing to attend to. The output of a sequence that is none is 0.
template <typename T>
__device__ __forceinline__ bool without_keys(const Decode& p, const Share& s) {
  if (s.position >= 0 && s.begin < s.end) return false;
  wait_for_previous();
  if (s.position >= 0 || blockIdx.x != 0) return true;
  T* out = static_cast<T*>(p.out) + (int64_t{blockIdx.z} * p.heads + s.first_head) * p.dim;
  for (int i = threadIdx.x; i < s.heads * p.dim; i += kThreads) out[i] = from_float<T>(0.0f);
  return true;
}

}  // namespace stablemask::ops::cuda::decoding
