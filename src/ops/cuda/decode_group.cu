// As decode.cu for groups of up to 8 query heads that share keys, in bf16: the products are those
// of the tensor cores, m16n8k16 with the heads as rows (8 of 16 are used), so that the work per key
// hardly grows with the group. A warp takes 16 keys at a time.
//
// Operands are read from memory in 16-byte packs, as wide as rows are read fastest, and serve as
// fragments without a transposition, because columns may be numbered freely:
//   scores = query·keyᵀ: a lane's pack of 8 columns is its part of two k-steps, for both operands;
//   out = weights·value: a lane has packs of 4 keys; tile j of 8 columns is the j-th of each pack.
// Queries (rotated) and weights are rounded to bf16, as flash attention does.
// Source of the fragments' layout: PTX ISA 9.0, "mma.m16n8k16".
#include "src/ops/cuda/decode_combine.cuh"

namespace stablemask::ops::cuda::decoding {
namespace {

constexpr int kGroup = 8;
constexpr int kPassKeys = 16;

/// d += a·b for rows 0 … 7: a0, a2 are the fragments of a's upper half, its lower half is 0.
__device__ __forceinline__ void multiply(float (&d)[2], uint32_t a0, uint32_t a2, uint32_t b0,
                                         uint32_t b1) {
  [[maybe_unused]] float unused0;
  [[maybe_unused]] float unused1;
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %5}, {%7, %8}, {%0, %1, %9, %9};"
      : "+f"(d[0]), "+f"(d[1]), "=f"(unused0), "=f"(unused1)
      : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1), "f"(0.0f));
}

__device__ __forceinline__ uint32_t packed_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// One key/value head of one sequence.
struct Cache {
  const bf16* keys;
  const bf16* values;
  int64_t key_stride, value_stride;
};

/// Keys and values of a pass as this lane needs them.
template <int kDim>
struct Fragments {
  static constexpr int kKeyPacks = kDim / 32;
  static constexpr int kValuePacks = kDim / 64;
  Columns<bf16> keys[2][kKeyPacks];      ///< of key lane/4 of each tile of 8
  Columns<bf16> values[4][kValuePacks];  ///< of keys 2·(lane%4) + {0, 1, 8, 9}

  static __device__ __forceinline__ int key_of(int tile) {
    return tile * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
  }
  static __device__ __forceinline__ int value_of(int i) {
    return static_cast<int>(threadIdx.x) % 4 * 2 + i % 2 + i / 2 * 8;
  }
  static __device__ __forceinline__ int key_column(int pack) {
    return (pack * 4 + static_cast<int>(threadIdx.x) % 4) * kColumns;
  }
  static __device__ __forceinline__ int value_column(int pack) {
    return (pack * 8 + static_cast<int>(threadIdx.x) % 32 / 4) * kColumns;
  }

  __device__ __forceinline__ void load(const Decode& p, const Share& s, const Cache& cache,
                                       int first) {
    const auto dim_of = [&](int key) { return key < s.end && key != s.visible - 1 ? p.dim : 0; };
    const auto slot_of = [&](int key) -> int64_t { return s.slot(min(key, s.end - 1), p.slots); };
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int key = first + key_of(tile);
      const bf16* row = cache.keys + slot_of(key) * cache.key_stride;
#pragma unroll
      for (int i = 0; i < kKeyPacks; ++i) {
        keys[tile][i] = load_columns<true>(row, key_column(i), dim_of(key));
      }
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int key = first + value_of(v);
      const bf16* row = cache.values + slot_of(key) * cache.value_stride;
#pragma unroll
      for (int i = 0; i < kValuePacks; ++i) {
        values[v][i] = load_columns<true>(row, value_column(i), dim_of(key));
      }
    }
  }

  /// Puts the new token in its place.
  __device__ __forceinline__ void insert(const bf16* key, const bf16* value, int newest) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if (key_of(tile) != newest) continue;
#pragma unroll
      for (int i = 0; i < kKeyPacks; ++i) {
        keys[tile][i] = load_columns<true>(key, key_column(i), kDim);
      }
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      if (value_of(v) != newest) continue;
#pragma unroll
      for (int i = 0; i < kValuePacks; ++i) {
        values[v][i] = load_columns<true>(value, value_column(i), kDim);
      }
    }
  }
};

/// The softmax of head lane/4 over the warp's keys; the lane's columns are those of packs
/// 2·(lane%4) and 2·(lane%4) + 1 of each 64. `sum` is that of the lane's own weights.
template <int kDim>
struct GroupState {
  float largest = kLowest;
  float sum = 0.0f;
  float out[kDim / 64][kColumns][2] = {};
};

template <int kDim>
__device__ __forceinline__ void add_keys(const Decode& p, const Share& s,
                                         const Fragments<kDim>& part, const bf16* query,
                                         float slope, int first, GroupState<kDim>& state) {
  using Part = Fragments<kDim>;
  float scores[2][2] = {};
#pragma unroll
  for (int i = 0; i < Part::kKeyPacks; ++i) {
    const Columns<bf16> q = load_columns<true>(query, Part::key_column(i), kDim);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const auto& k = part.keys[tile][i].words.data;
      multiply(scores[tile], q.words.data[0], q.words.data[1], k[0], k[1]);
      multiply(scores[tile], q.words.data[2], q.words.data[3], k[2], k[3]);
    }
  }
  float largest = state.largest;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int key = first + Part::value_of(i);
    float& score = scores[i / 2][i % 2];
    score = score * (p.scale * kLog2E) - slope * static_cast<float>(s.visible - 1 - key);
    if (key >= s.end) score = -INFINITY;
    largest = fmaxf(largest, score);
  }
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
  const float factor = exp2_as<bf16>(state.largest - largest);
  state.largest = largest;
  state.sum *= factor;
#pragma unroll
  for (auto& pack : state.out) {
#pragma unroll
    for (auto& pair : pack) {
      pair[0] *= factor;
      pair[1] *= factor;
    }
  }
  uint32_t weights[2];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    const float a = exp2_as<bf16>(scores[tile][0] - largest);
    const float b = exp2_as<bf16>(scores[tile][1] - largest);
    state.sum += a + b;
    weights[tile] = packed_pair(a, b);
  }
#pragma unroll
  for (int i = 0; i < Part::kValuePacks; ++i) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const unsigned select = j % 2 == 0 ? 0x5410u : 0x7632u;
      const auto word = [&](int v) { return part.values[v][i].words.data[j / 2]; };
      multiply(state.out[i][j], weights[0], weights[1], __byte_perm(word(0), word(1), select),
               __byte_perm(word(2), word(3), select));
    }
  }
}

template <int kDim, typename Memory>
__device__ __forceinline__ void store_state(const GroupState<kDim>& state, Memory& shared) {
  const int warp = threadIdx.x / 32;
  const int head = static_cast<int>(threadIdx.x) % 32 / 4;
  const int quarter = threadIdx.x % 4;
  float sum = state.sum;
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  if (quarter == 0) {
    shared.warp_largest[warp][head] = state.largest;
    shared.warp_sum[warp][head] = sum;
  }
#pragma unroll
  for (int i = 0; i < kDim / 64; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* to = shared.warp_out[warp][head] + i * 64 + (quarter * 2 + half) * kColumns;
#pragma unroll
      for (int j = 0; j < kColumns; j += 4) {
        *reinterpret_cast<float4*>(to + j) =
            make_float4(state.out[i][j][half], state.out[i][j + 1][half], state.out[i][j + 2][half],
                        state.out[i][j + 3][half]);
      }
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim == 64 ? 2 : 1)
    decode_attention_group_kernel(const Decode p) {
  __shared__ Shared<bf16, bf16, kDim, kGroup> shared;
  let_next_start();
  const Share s = share_of<kGroup>(p);
  if (without_keys<bf16>(p, s)) return;

  const Cache cache{
      static_cast<const bf16*>(p.keys) + s.row * p.key_strides[0] + s.kv_head * p.key_strides[2],
      static_cast<const bf16*>(p.values) + s.row * p.value_strides[0] +
          s.kv_head * p.value_strides[2],
      p.key_strides[1], p.value_strides[1]};
  const int offset = static_cast<int>(threadIdx.x) / 32 * kPassKeys;
  Fragments<kDim> part;
  part.load(p, s, cache, s.begin + offset);
  compute_mass(p, s, shared);
  wait_for_previous();
  prepare(p, s, shared);
  __syncthreads();

  const int head = static_cast<int>(threadIdx.x) % 32 / 4;
  const float slope =
      p.slopes != nullptr && head < s.heads ? p.slopes[s.first_head + head] * kLog2E : 0.0f;
  GroupState<kDim> state;
  for (int first = s.begin + offset; first < s.end; first += kWarps * kPassKeys) {
    if (first != s.begin + offset) part.load(p, s, cache, first);
    if (s.has_newest()) part.insert(shared.key, shared.value, s.visible - 1 - first);
    add_keys(p, s, part, shared.query[head], slope, first, state);
  }
  store_state(state, shared);
  __syncthreads();
  finish(p, s, shared);
}

template <int kDim>
cudaError_t launch_dim(const Decode& p, cudaStream_t stream) {
  const auto kernel = decode_attention_group_kernel<kDim>;
  return launch_clusters(kernel, kernel, p, kGroup, kWarps * kPassKeys, stream);
}

}  // namespace

bool has_group_kernel(const Decode& p) { return p.dtype == DType::kBFloat16 && p.dim <= 128; }

cudaError_t launch_group_kernel(const Decode& p, cudaStream_t stream) {
  return p.dim <= 64 ? launch_dim<64>(p, stream) : launch_dim<128>(p, stream);
}

}  // namespace stablemask::ops::cuda::decoding
