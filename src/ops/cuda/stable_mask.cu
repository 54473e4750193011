// StableMask correction of a causal attention's output, in place, with d = log S − lse:
//   lse' = logaddexp(lse, log S) = max(lse, log S) + log1p(e^{−|d|})
//   out' = out · exp(lse − lse') = out · σ(−d)
// A row without real scores (lse = −inf) is set to 0, whatever it contained, NaN included.
//
// Parallelisation: a block processes a tile of rows x heads. It first computes the tile's factors
// with threads along time, the contiguous dimension of lse, then scales the outputs with threads
// along channels. Memory traffic: out once in and once out, lse in and out, log S in. Rows without
// pseudo slots (i ≥ N−1, factor 1) do not read or write `out`.
#include "src/ops/cuda/common.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowTile = 16;
constexpr int kHeadTile = 16;

/// Updates one log-sum-exp and returns the factor of its output row.
__device__ float correct(float* lse, float log_mass) {
  const float before = *lse;
  if (log_mass == -INFINITY) return before == -INFINITY ? 0.0f : 1.0f;
  if (before == -INFINITY) {
    *lse = log_mass;
    return 0.0f;
  }
  const float difference = log_mass - before;
  const float ratio = expf(-fabsf(difference));
  *lse = fmaxf(before, log_mass) + log1pf(ratio);
  return (difference > 0.0f ? ratio : 1.0f) / (1.0f + ratio);
}

template <typename T, int kVec>
__device__ void scale_row_pack(T* out, float factor) {
  float scaled[kVec] = {};
  if (factor != 0.0f) {
    const Pack<T, kVec> values = load<kVec>(out);
#pragma unroll
    for (int k = 0; k < kVec; ++k) scaled[k] = to_float(values.data[k]) * factor;
  }
  store<kVec>(out, pack<T>(scaled));
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads) stable_mask_kernel(const StableMaskCorrection p) {
  __shared__ float factors[kHeadTile][kRowTile];
  const int64_t first_row = int64_t{blockIdx.x} * kRowTile;
  const int first_head = blockIdx.y * kHeadTile;
  const int rows = static_cast<int>(min(int64_t{kRowTile}, p.length - first_row));
  const int heads = min(kHeadTile, p.heads - first_head);
  const int packs = p.dim / kVec;

  for (int64_t b = blockIdx.z; b < p.batch; b += gridDim.z) {
    for (int i = threadIdx.x; i < kRowTile * heads; i += kThreads) {
      const int row = i % kRowTile;
      const int head = i / kRowTile;
      if (row >= rows) continue;
      const int64_t h = first_head + head;
      const int64_t t = first_row + row;
      factors[head][row] = correct(
          p.lse + b * p.lse_strides[0] + h * p.lse_strides[1] + t * p.lse_strides[2],
          p.log_mass[b * p.mass_strides[0] + h * p.mass_strides[1] + t * p.mass_strides[2]]);
    }
    __syncthreads();
    T* tile = static_cast<T*>(p.out) + b * p.out_strides[0] + first_row * p.out_strides[1] +
              first_head * p.out_strides[2];
    for (int i = threadIdx.x; i < rows * heads * packs; i += kThreads) {
      const int head = i / packs % heads;
      const int row = i / packs / heads;
      const float factor = factors[head][row];
      if (factor == 1.0f) continue;
      T* out = tile + row * p.out_strides[1] + head * p.out_strides[2] + i % packs * kVec;
      scale_row_pack<T, kVec>(out, factor);
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t launch(const StableMaskCorrection& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bool whole = aligned(p.out) && p.dim % kFullPack<T> == 0;
    for (const int64_t stride : p.out_strides) whole = whole && stride % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.length, kRowTile)),
                      static_cast<unsigned>(ceil_div(p.heads, kHeadTile)),
                      static_cast<unsigned>(std::min<int64_t>(p.batch, 65535)));
      stable_mask_kernel<T, vec.value><<<grid, kThreads, 0, stream>>>(p);
      return cudaGetLastError();
    });
  });
}

}  // namespace stablemask::ops::cuda
