// Rotary embedding in place, half-split layout, angle θ(position, m) from the table:
//   y_m       = x_m·cos − x_{m+R/2}·sin
//   y_{m+R/2} = x_{m+R/2}·cos + x_m·sin          (inverse: sin → −sin)
//
// Parallelisation: one warp per token. A lane keeps the cosines and sines of one pack of columns in
// registers for all heads of the token; the warp processes several heads at a time.
// Memory traffic: the rotated part of the packed projection once in, once out; the value heads, and
// columns from `dims` on, are not touched. The table stays in L2.
#include "src/ops/cuda/common.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kUnroll = 4;  // heads in flight per lane

template <typename T, int kVec>
__device__ __forceinline__ void rotate(Pack<T, kVec>& first, Pack<T, kVec>& second,
                                       const Pack<float, kVec>& cosine,
                                       const Pack<float, kVec>& sine, float sign) {
  float a[kVec];
  float b[kVec];
#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    const float x = to_float(first.data[k]);
    const float y = to_float(second.data[k]);
    const float s = sign * sine.data[k];
    a[k] = x * cosine.data[k] - y * s;
    b[k] = y * cosine.data[k] + x * s;
  }
  first = pack<T>(a);
  second = pack<T>(b);
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads) rope_kernel(const Rope p) {
  const int64_t token = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (token >= p.tokens) return;
  const int half = p.dims / 2;
  const int lanes = min(half / kVec, 32);  // lanes that share one head
  const int heads_at_once = 32 / lanes;
  const int lane = threadIdx.x % 32;
  const int first_head = lane / lanes;
  if (first_head >= heads_at_once) return;

  const int64_t position = p.positions[token % p.position_period];
  const bool known = position >= 0 && position < p.table_rows;
  const float* angles = p.table + (known ? position : 0) * p.dims;
  const float sign = !known ? __int_as_float(0x7fc00000) : p.inverse ? -1.0f : 1.0f;
  T* base = static_cast<T*>(p.packed) + token * p.packed_heads * p.head_dim;

  for (int m = (lane % lanes) * kVec; m < half; m += lanes * kVec) {
    const auto cosine = load<kVec>(angles + m);
    const auto sine = load<kVec>(angles + half + m);
    for (int head = first_head; head < p.heads; head += kUnroll * heads_at_once) {
      Pack<T, kVec> first[kUnroll];
      Pack<T, kVec> second[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int h = head + u * heads_at_once;
        if (h < p.heads) {
          first[u] = load<kVec>(base + h * p.head_dim + m);
          second[u] = load<kVec>(base + h * p.head_dim + m + half);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int h = head + u * heads_at_once;
        if (h < p.heads) {
          rotate(first[u], second[u], cosine, sine, sign);
          store<kVec>(base + h * p.head_dim + m, first[u]);
          store<kVec>(base + h * p.head_dim + m + half, second[u]);
        }
      }
    }
  }
}

}  // namespace

cudaError_t launch(const Rope& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kFull = kFullPack<T>;
    const bool whole =
        aligned(p.packed, p.table) && p.dims / 2 % kFull == 0 && p.head_dim % kFull == 0;
    return with_pack<T>(whole, [&](auto vec) {
      const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.tokens, kThreads / 32));
      rope_kernel<T, vec.value><<<blocks, kThreads, 0, stream>>>(p);
      return cudaGetLastError();
    });
  });
}

}  // namespace stablemask::ops::cuda
