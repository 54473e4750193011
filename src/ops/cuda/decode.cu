// Attention of one new token per sequence over a cache of keys and values (ops/decode.h), in fp32
// with base-2 exponentials: query·key is multiplied by scale·log2(e). The kernel here takes one or
// two query heads of a key/value head at a time; decode_group.cu takes larger groups.
//
// Parallelisation: a block has one sequence, one key/value head with its query heads, and one of
// `splits` equal shares of the visible keys; the shares of a head are the blocks of a cluster. A
// team of kLanes lanes reads a key and a value in 16-byte packs of 8 columns per lane and keeps an
// online softmax (largest score, sum, weighted values) for each query. Teams, warps and blocks are
// then combined in a fixed order, the blocks through distributed shared memory. The number of
// blocks depends on the sizes alone, not on positions, as a recorded CUDA graph needs; blocks
// without keys return at once.
//
// RoPE of the queries is computed in each block; the block that has the newest key rotates it and
// writes key and value into the cache. StableMask's mass S is one more term of the denominator:
//   out·exp(lse − logaddexp(lse, log S)) = Σ w·v / (Σ w + S).
//
// Memory traffic: each visible key and value once. Their first loads are issued before the queries
// are rotated, so that both latencies overlap; launched with `overlapped` already before the kernel
// that computes the new token has ended. That kernel writes nothing else that is read here.
#include "src/ops/cuda/decode.h"

#include "src/ops/cuda/decode_combine.cuh"

namespace stablemask::ops::cuda {
namespace {

using namespace decoding;

/// Online softmax of one query over a team's keys; `out` has the lane's columns.
struct Softmax {
  float largest = kLowest;
  float sum = 0.0f;
  float out[kColumns] = {};
};

/// Multiplies the state by 2^(largest − to).
template <typename T>
__device__ __forceinline__ void rescale(Softmax& state, float to) {
  const float factor = exp2_as<T>(state.largest - to);
  state.largest = to;
  state.sum *= factor;
#pragma unroll
  for (float& x : state.out) x *= factor;
}

/// Keys of one pass: `kUnroll` per team.
template <typename T, int kUnroll>
struct Pass {
  Columns<T> keys[kUnroll];
  Columns<T> values[kUnroll];
};

/// The 2-logarithms of weights, scaled scores, of a pass for one query; −inf past the end.
template <typename T, int kLanes, int kUnroll>
__device__ __forceinline__ void scores_of(const Pass<T, kUnroll>& pass, const float* query,
                                          float slope, int first, int step, const Share& s,
                                          float (&scores)[kUnroll]) {
  float q[kColumns];
#pragma unroll
  for (int k = 0; k < kColumns; k += 4) {
    *reinterpret_cast<float4*>(q + k) = *reinterpret_cast<const float4*>(query + k);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    scores[u] = 0.0f;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) scores[u] += q[k] * pass.keys[u][k];
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      scores[u] += __shfl_xor_sync(0xffffffffu, scores[u], offset);
    }
    const int key = first + u * step;
    scores[u] -= slope * static_cast<float>(s.visible - 1 - key);
    if (key >= s.end) scores[u] = -INFINITY;
  }
}

template <typename T, int kUnroll>
__device__ __forceinline__ void add_pass(Softmax& state, const Pass<T, kUnroll>& pass,
                                         const float (&scores)[kUnroll]) {
  float largest = state.largest;
#pragma unroll
  for (const float score : scores) largest = fmaxf(largest, score);
  rescale<T>(state, largest);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const float weight = exp2_as<T>(scores[u] - largest);
    state.sum += weight;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) state.out[k] += weight * pass.values[u][k];
  }
}

/// Adds a pass, whose first key of this team is `first`, to the softmax of each query.
template <typename T, int kLanes, int kUnroll, int kGroup, typename Memory>
__device__ __forceinline__ void attend(Softmax (&states)[kGroup], const Pass<T, kUnroll>& pass,
                                       const Decode& p, const Share& s, const Memory& shared,
                                       int first, int step) {
  const int column = static_cast<int>(threadIdx.x) % kLanes * kColumns;
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    const float slope =
        p.slopes != nullptr && g < s.heads ? p.slopes[s.first_head + g] * kLog2E : 0.0f;
    float scores[kUnroll];
    scores_of<T, kLanes>(pass, shared.query[g] + column, slope, first, step, s, scores);
    add_pass(states[g], pass, scores);
  }
}

/// Combines the teams of a warp and writes the result of each query to shared memory.
template <typename T, int kLanes, int kGroup>
__device__ __forceinline__ void store_warp(Softmax (&states)[kGroup],
                                           Shared<T, float, kLanes * kColumns, kGroup>& shared) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    Softmax& state = states[g];
    float largest = state.largest;
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    }
    rescale<T>(state, largest);
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) {
      state.sum += __shfl_xor_sync(0xffffffffu, state.sum, offset);
#pragma unroll
      for (float& x : state.out) x += __shfl_xor_sync(0xffffffffu, x, offset);
    }
    if (lane >= kLanes) continue;
    float* to = shared.warp_out[warp][g] + lane * kColumns;
#pragma unroll
    for (int k = 0; k < kColumns; k += 4) {
      *reinterpret_cast<float4*>(to + k) = *reinterpret_cast<const float4*>(state.out + k);
    }
    if (lane == 0) {
      shared.warp_largest[warp][g] = state.largest;
      shared.warp_sum[warp][g] = state.sum;
    }
  }
}

/// kAhead: the keys of a pass are loaded during the pass before it, which costs registers and pays
/// where few blocks run.
template <typename T, int kLanes, int kGroup, bool kWhole, bool kAhead>
__global__ void __launch_bounds__(kThreads, kAhead ? 1 : (kGroup == 1 ? 4 : 2))
    decode_attention_kernel(const Decode p) {
  constexpr int kUnroll = std::is_same_v<T, float> ? 2 : 4;
  constexpr int kTeamsOfWarp = 32 / kLanes;
  constexpr int kTeams = kWarps * kTeamsOfWarp;
  constexpr int kKeys = kTeams * kUnroll;
  __shared__ Shared<T, float, kLanes * kColumns, kGroup> shared;
  let_next_start();
  const Share s = share_of<kGroup>(p);
  if (without_keys<T>(p, s)) return;

  const int column = static_cast<int>(threadIdx.x) % kLanes * kColumns;
  const int team = static_cast<int>(threadIdx.x) / kLanes;
  const int first_of_warp = static_cast<int>(threadIdx.x) / 32 * kTeamsOfWarp;
  const T* keys =
      static_cast<const T*>(p.keys) + s.row * p.key_strides[0] + s.kv_head * p.key_strides[2];
  const T* values =
      static_cast<const T*>(p.values) + s.row * p.value_strides[0] + s.kv_head * p.value_strides[2];
  const auto load_pass = [&](Pass<T, kUnroll>& pass, int first) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int key = first + team + u * kTeams;
      const bool cached = key < s.end && key != s.visible - 1;
      const int64_t slot = s.slot(min(key, s.end - 1), p.slots);
      const int dim = cached ? p.dim : 0;
      pass.keys[u] = load_columns<kWhole>(keys + slot * p.key_strides[1], column, dim);
      pass.values[u] = load_columns<kWhole>(values + slot * p.value_strides[1], column, dim);
    }
  };
  Pass<T, kUnroll> pass;
  load_pass(pass, s.begin);
  compute_mass(p, s, shared);
  wait_for_previous();
  prepare(p, s, shared);
  __syncthreads();

  Softmax states[kGroup];
  for (int first = s.begin; first < s.end; first += kKeys) {
    if (first + first_of_warp >= s.end) break;
    Pass<T, kUnroll> next;
    if constexpr (kAhead) {
      load_pass(next, first + kKeys);
    } else if (first != s.begin) {
      load_pass(pass, first);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!s.has_newest() || first + team + u * kTeams != s.visible - 1) continue;
      pass.keys[u] = load_columns<true>(shared.key, column, kLanes * kColumns);
      pass.values[u] = load_columns<true>(shared.value, column, kLanes * kColumns);
    }
    attend<T, kLanes>(states, pass, p, s, shared, first + team, kTeams);
    if constexpr (kAhead) pass = next;
  }
  store_warp<T, kLanes>(states, shared);
  __syncthreads();
  finish(p, s, shared);
}

template <typename T, int kLanes, int kGroup, bool kWhole>
cudaError_t launch_lanes(const Decode& p, cudaStream_t stream) {
  return launch_clusters(decode_attention_kernel<T, kLanes, kGroup, kWhole, false>,
                         decode_attention_kernel<T, kLanes, kGroup, kWhole, kWhole>, p, kGroup,
                         kWarps * (32 / kLanes) * 4, stream);
}

template <typename T, int kLanes>
cudaError_t launch_heads(const Decode& p, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, bf16>) {
    const int group = p.heads / p.kv_heads;
    if (group >= 3 && has_group_kernel(p)) return launch_group_kernel(p, stream);
    if (group >= 2) return launch_lanes<T, kLanes, 2, true>(p, stream);
  }
  return launch_lanes<T, kLanes, 1, true>(p, stream);
}

}  // namespace

cudaError_t launch(const Decode& p, cudaStream_t stream) {
  if (p.dim > Decode::kLargestDim) return cudaErrorInvalidValue;
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bool whole = aligned(p.keys, p.values) && p.dim % kColumns == 0;
    for (const int64_t stride : p.key_strides) whole = whole && stride % kFullPack<T> == 0;
    for (const int64_t stride : p.value_strides) whole = whole && stride % kFullPack<T> == 0;
    if (!whole) return launch_lanes<T, 32, 1, false>(p, stream);
    if (p.dim <= 64) return launch_heads<T, 8>(p, stream);
    if (p.dim <= 128) return launch_heads<T, 16>(p, stream);
    return launch_heads<T, 32>(p, stream);
  });
}

}  // namespace stablemask::ops::cuda
