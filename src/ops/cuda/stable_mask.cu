// StableMask correction of a causal attention's output, in place, with d = log S − lse:
//   lse' = logaddexp(lse, log S) = max(lse, log S) + log1p(e^{−|d|})
//   out' = out · exp(lse − lse') = out · σ(−d)
// A row without real scores (lse = −inf) is set to 0, whatever it contained, NaN included.
//
// Correction: a block processes a tile of rows x heads. It first computes the tile's factors
// with threads along time, the contiguous dimension of lse, then scales the outputs with threads
// along channels. Memory traffic: out once in and once out, lse in and out, log S in. Rows without
// pseudo slots (i ≥ N−1, factor 1) do not read or write `out`.
//
// Gradient of the mass, from dout, out' and lse':
//   ∂L/∂log S_i = −Σ_b ρ_i·D_i,   ρ_i = exp(log S_i − lse'_i),   D_i = Σ_d dout·out'
// A group of 8 to 32 lanes processes 8 neighbouring rows of a head: each lane multiplies its
// channels of all 8 rows, and the sums over the lanes are formed so that lane r receives row r,
// whose ρ it holds. The warps of a block take every 8th sequence (fewer for small batches) and add
// their sums in order. Memory traffic: dout and out in once; rows with ρ = 0 are not read.
#include "src/ops/cuda/stable_mask.h"

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

constexpr int kWarps = kThreads / 32;
constexpr int kRows = 8;  ///< rows of a group in the gradient of the mass
constexpr unsigned kAllLanes = 0xffffffffu;

/// Sum of each row over the group's lanes. Returns to lane r the sum of row r % kRows.
template <int kGroup>
__device__ __forceinline__ float row_sum(float (&x)[kRows]) {
  const int lane = threadIdx.x % kGroup;
#pragma unroll
  for (int half = kRows / 2; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
#pragma unroll
    for (int k = 0; k < half; ++k) {
      const float kept = upper ? x[k + half] : x[k];
      const float sent = upper ? x[k] : x[k + half];
      x[k] = kept + __shfl_xor_sync(kAllLanes, sent, half);
    }
  }
#pragma unroll
  for (int offset = kRows; offset < kGroup; offset *= 2) {
    x[0] += __shfl_xor_sync(kAllLanes, x[0], offset);
  }
  return x[0];
}

/// Adds to dot[r] this lane's share of Σ_d dout·out of row r. Reads only rows whose bit in `rows`
/// is set. Half of the rows at a time: enough loads in flight without spilling registers.
template <typename T, int kVec, int kGroup>
__device__ __forceinline__ void add_products(const StableMaskMassGradient& p, const T* dout,
                                             const T* out, unsigned rows, float (&dot)[kRows]) {
  constexpr int kHalf = kRows / 2;
  const int packs = p.dim / kVec;
  for (int i = threadIdx.x % kGroup; i < packs; i += kGroup) {
#pragma unroll
    for (int first = 0; first < kRows; first += kHalf) {
      Pack<T, kVec> a[kHalf] = {};
      Pack<T, kVec> b[kHalf] = {};
#pragma unroll
      for (int r = 0; r < kHalf; ++r) {
        if ((rows >> (first + r) & 1u) == 0) continue;
        a[r] = load<kVec>(dout + (first + r) * p.dout_strides[1] + i * kVec);
        b[r] = load<kVec>(out + (first + r) * p.out_strides[1] + i * kVec);
      }
#pragma unroll
      for (int r = 0; r < kHalf; ++r) {
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
          dot[first + r] += to_float(a[r].data[k]) * to_float(b[r].data[k]);
        }
      }
    }
  }
}

__device__ __forceinline__ float mask_ratio(const StableMaskMassGradient& p, int64_t b, int head,
                                            int64_t row) {
  const float mass =
      p.log_mass[b * p.mass_strides[0] + head * p.mass_strides[1] + row * p.mass_strides[2]];
  if (isinf(mass)) return 0.0f;  // +inf: the output is constant 0
  return expf(mass -
              p.lse[b * p.lse_strides[0] + head * p.lse_strides[1] + row * p.lse_strides[2]]);
}

/// `slices` warps, a power of two, share the sequences of a tile of kRows rows.
template <typename T, int kVec, int kGroup>
__global__ void __launch_bounds__(kThreads)
    stable_mask_gradient_kernel(const StableMaskMassGradient p, int slices, int head_tiles) {
  constexpr int kHeads = 32 / kGroup;
  constexpr int kResults = kHeads * kRows;
  __shared__ float sums[kWarps][kResults];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int slice = warp % slices;
  const int first_head = static_cast<int>(blockIdx.x % head_tiles) * kHeads;
  const int64_t tile = int64_t{blockIdx.x / head_tiles} * (kWarps / slices) + warp / slices;
  const int64_t first_row = tile * kRows;

  const int head = first_head + lane / kGroup;
  const int64_t row = first_row + lane % kRows;
  const bool inside = head < p.heads && row < p.length;
  const int shift = lane / kGroup * kGroup;
  float sum = 0.0f;
  for (int64_t k = slice; k < p.summed; k += slices) {
    const int64_t b = int64_t{blockIdx.y} * p.summed + k;
    const float ratio = inside ? mask_ratio(p, b, head, row) : 0.0f;
    const unsigned rows = __ballot_sync(kAllLanes, ratio != 0.0f) >> shift;
    float dot[kRows] = {};
    add_products<T, kVec, kGroup>(p,
                                  static_cast<const T*>(p.dout) + b * p.dout_strides[0] +
                                      first_row * p.dout_strides[1] + head * p.dout_strides[2],
                                  static_cast<const T*>(p.out) + b * p.out_strides[0] +
                                      first_row * p.out_strides[1] + head * p.out_strides[2],
                                  rows, dot);
    const float product = row_sum<kGroup>(dot);
    if (ratio != 0.0f) sum += ratio * product;
  }
  if (lane % kGroup < kRows) sums[warp][lane / kGroup * kRows + lane % kRows] = sum;
  __syncthreads();
  if (slice != 0 || lane >= kResults) return;
  float total = 0.0f;
  for (int s = 0; s < slices; ++s) total += sums[warp + s][lane];
  const int64_t result_row = first_row + lane % kRows;
  const int result_head = first_head + lane / kRows;
  if (result_head >= p.heads || result_row >= p.length) return;
  p.dlog_mass[(int64_t{blockIdx.y} * p.heads + result_head) * p.length + result_row] = -total;
}

/// Calls f(integral_constant) with the number of lanes that process a row of `packs`.
template <int kVec, typename F>
cudaError_t with_group(int packs, F&& f) {
  if constexpr (kVec > 1) {
    if (packs <= 8) return f(std::integral_constant<int, 8>{});
    if (packs <= 16) return f(std::integral_constant<int, 16>{});
  }
  return f(std::integral_constant<int, 32>{});
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

cudaError_t launch(const StableMaskMassGradient& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bool whole = aligned(p.dout, p.out) && p.dim % kFullPack<T> == 0;
    for (const int64_t stride : p.dout_strides) whole = whole && stride % kFullPack<T> == 0;
    for (const int64_t stride : p.out_strides) whole = whole && stride % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      constexpr int kVec = decltype(vec)::value;
      return with_group<kVec>(p.dim / kVec, [&](auto group) {
        constexpr int kGroup = decltype(group)::value;
        int slices = 1;
        while (slices < kWarps && 2 * slices <= p.summed) slices *= 2;
        const int head_tiles = ceil_div(p.heads, 32 / kGroup);
        const int64_t row_tiles = ceil_div<int64_t>(p.length, kRows * (kWarps / slices));
        const dim3 grid(static_cast<unsigned>(row_tiles * head_tiles),
                        static_cast<unsigned>(p.batch / p.summed));
        stable_mask_gradient_kernel<T, kVec, kGroup>
            <<<grid, kThreads, 0, stream>>>(p, slices, head_tiles);
        return cudaGetLastError();
      });
    });
  });
}

}  // namespace stablemask::ops::cuda
