// The elementwise parts of Muon (formulas: ops/muon.h) and the norms of its matrices.
//
// Parallelisation: momentum and step take packs of four elements, two per thread, whose loads are
// all issued before the first store. A matrix's norm is the sum of kPartials blocks' sums in a
// fixed order; each block of the division adds them up again. Transposition goes through shared
// memory by tiles of 64 x 64. Memory traffic per element: momentum 8 bytes in, 6 out; norm 2 in;
// division 2 in, 2 out; step 6 in, 4 out.
#include "src/ops/cuda/muon_launchers.h"

#include "src/ops/cuda/split_weights.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 2;
constexpr int kVec = 4;
constexpr int kTile = 64;  // transposition

/// n neighbouring elements as floats.
template <int n, typename T>
__device__ __forceinline__ Pack<float, n> load_floats(const T* from) {
  const Pack<T, n> x = load<n>(from);
  Pack<float, n> result;
#pragma unroll
  for (int k = 0; k < n; ++k) result.data[k] = to_float(x.data[k]);
  return result;
}

template <typename T>
struct MomentumWork {
  MuonMomentum p;

  struct Scalars {
    float grad_scale;
  };
  __device__ Scalars scalars() const { return {static_cast<float>(p.control[2])}; }

  template <int n>
  struct Loaded {
    Pack<float, n> momentum, grad;
  };
  template <int n>
  __device__ __forceinline__ Loaded<n> loaded(int64_t at) const {
    return {load<n>(p.momentum + at), load<n>(p.grad + at)};
  }
  template <int n>
  __device__ __forceinline__ void finish(int64_t at, Loaded<n> x, const Scalars& s) const {
    float sum[n];
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const float g = x.grad.data[k] * s.grad_scale;
      x.momentum.data[k] = p.mu * x.momentum.data[k] + g;
      sum[k] = g + p.mu * x.momentum.data[k];
    }
    store_streaming(p.momentum + at, x.momentum);
    store<n>(static_cast<T*>(p.sum) + at, pack<T>(sum));
  }
};

template <typename T, bool kSplit>
struct ApplyWork {
  MuonApply p;

  struct Scalars {
    float keep, lr;  ///< 1 − lr·weight_decay
  };
  __device__ Scalars scalars() const {
    const double lr = p.control[0];
    return {static_cast<float>(1.0 - lr * p.weight_decay), static_cast<float>(lr)};
  }

  template <int n>
  struct Loaded {
    Pack<float, n> weights, update;
  };
  template <int n>
  __device__ __forceinline__ Loaded<n> loaded(int64_t at) const {
    const Pack<float, n> update = load_floats<n>(static_cast<const T*>(p.update) + at);
    if constexpr (kSplit) {
      const Split<n> split{load<n>(static_cast<const uint16_t*>(p.weights) + at),
                           load<n>(p.remainder + at)};
      return {join(split), update};
    } else {
      return {load<n>(static_cast<const float*>(p.weights) + at), update};
    }
  }
  template <int n>
  __device__ __forceinline__ void finish(int64_t at, Loaded<n> x, const Scalars& s) const {
#pragma unroll
    for (int k = 0; k < n; ++k) {
      x.weights.data[k] = s.keep * x.weights.data[k] - s.lr * x.update.data[k];
    }
    if constexpr (kSplit) {
      const Split<n> result = split(x.weights);
      store<n>(static_cast<uint16_t*>(p.weights) + at, result.rounded);
      store_streaming(p.remainder + at, result.remainder);
    } else {
      store<n>(static_cast<float*>(p.weights) + at, x.weights);
    }
  }
};

/// Works on `packs` packs of n elements; no update for a negative gradient scale.
template <int n, typename Work>
__global__ void __launch_bounds__(kThreads) muon_elements_kernel(const Work work, int64_t packs) {
  if (work.p.control[2] < 0.0) return;
  const int64_t first = int64_t{blockIdx.x} * kThreads * kUnroll + threadIdx.x;
  const auto scalars = work.scalars();
  typename Work::template Loaded<n> x[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = first + u * kThreads;
    if (i < packs) x[u] = work.template loaded<n>(i * n);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = first + u * kThreads;
    if (i < packs) work.template finish<n>(i * n, x[u], scalars);
  }
}

/// `whole`: pointers are aligned for packs of kVec.
template <typename Work>
cudaError_t launch_elements(const Work& work, bool whole, cudaStream_t stream) {
  if (work.p.size == 0) return cudaSuccess;
  const auto blocks = [](int64_t packs) {
    return static_cast<unsigned>(ceil_div<int64_t>(packs, kThreads * kUnroll));
  };
  if (whole && work.p.size % kVec == 0) {
    const int64_t packs = work.p.size / kVec;
    muon_elements_kernel<kVec><<<blocks(packs), kThreads, 0, stream>>>(work, packs);
  } else {
    muon_elements_kernel<1><<<blocks(work.p.size), kThreads, 0, stream>>>(work, work.p.size);
  }
  return cudaGetLastError();
}

/// partials[matrix, block] = Σ x² of a share of the matrix.
template <int n>
__global__ void __launch_bounds__(kThreads) muon_norms_kernel(const NormalizeMatrices p) {
  __shared__ float warps[kThreads / 32];
  const bf16* from = static_cast<const bf16*>(p.from) + blockIdx.y * p.stride;
  const int64_t packs = p.rows * p.cols / n;
  const int64_t stride = int64_t{NormalizeMatrices::kPartials} * kThreads;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < packs; i += stride) {
    const Pack<float, n> x = load_floats<n>(from + i * n);
#pragma unroll
    for (int k = 0; k < n; ++k) sum += x.data[k] * x.data[k];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = warp_sum(threadIdx.x < kThreads / 32 ? warps[threadIdx.x] : 0.0f);
  if (threadIdx.x == 0) {
    p.partials[blockIdx.y * NormalizeMatrices::kPartials + blockIdx.x] = sum;
  }
}

/// 1 / ‖matrix‖, or 0; every warp adds the partial sums up.
__device__ __forceinline__ float inverse_norm(const NormalizeMatrices& p, int64_t matrix) {
  static_assert(NormalizeMatrices::kPartials == 32);
  const float sum = warp_sum(p.partials[matrix * NormalizeMatrices::kPartials + threadIdx.x % 32]);
  return sum > 0.0f ? 1.0f / sqrtf(sum) : 0.0f;
}

template <int n>
__global__ void __launch_bounds__(kThreads) muon_divide_kernel(const NormalizeMatrices p) {
  const int64_t size = p.rows * p.cols;
  const bf16* from = static_cast<const bf16*>(p.from) + blockIdx.y * p.stride;
  bf16* to = static_cast<bf16*>(p.to) + blockIdx.y * size;
  const float factor = inverse_norm(p, blockIdx.y);
  const int64_t first = int64_t{blockIdx.x} * kThreads * kUnroll + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t at = (first + u * kThreads) * n;
    if (at >= size) continue;
    const Pack<float, n> x = load_floats<n>(from + at);
    float result[n];
#pragma unroll
    for (int k = 0; k < n; ++k) result[k] = x.data[k] * factor;
    store<n>(to + at, pack<bf16>(result));
  }
}

/// A block transposes a tile: 32 x 8 threads, each two columns of every eighth row.
__global__ void __launch_bounds__(kThreads)
    muon_divide_transposed_kernel(const NormalizeMatrices p) {
  __shared__ bf16 tile[kTile][kTile + 2];
  const bf16* from = static_cast<const bf16*>(p.from) + blockIdx.z * p.stride;
  bf16* to = static_cast<bf16*>(p.to) + blockIdx.z * p.rows * p.cols;
  const float factor = inverse_norm(p, blockIdx.z);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = int64_t{blockIdx.y} * kTile, col = int64_t{blockIdx.x} * kTile;
#pragma unroll
  for (int i = warp; i < kTile; i += kThreads / 32) {
    for (int j = lane; j < kTile; j += 32) {
      if (row + i >= p.rows || col + j >= p.cols) continue;
      tile[i][j] = __float2bfloat16_rn(to_float(from[(row + i) * p.cols + col + j]) * factor);
    }
  }
  __syncthreads();
#pragma unroll
  for (int j = warp; j < kTile; j += kThreads / 32) {
    for (int i = lane; i < kTile; i += 32) {
      if (row + i < p.rows && col + j < p.cols) to[(col + j) * p.rows + row + i] = tile[i][j];
    }
  }
}

template <int n>
cudaError_t launch_normalize(const NormalizeMatrices& p, cudaStream_t stream) {
  const auto matrices = static_cast<unsigned>(p.matrices);
  muon_norms_kernel<n><<<dim3(NormalizeMatrices::kPartials, matrices), kThreads, 0, stream>>>(p);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  if (p.transposed) {
    const dim3 tiles(static_cast<unsigned>(ceil_div<int64_t>(p.cols, kTile)),
                     static_cast<unsigned>(ceil_div<int64_t>(p.rows, kTile)), matrices);
    muon_divide_transposed_kernel<<<tiles, kThreads, 0, stream>>>(p);
  } else {
    const auto blocks =
        static_cast<unsigned>(ceil_div<int64_t>(p.rows * p.cols / n, kThreads * kUnroll));
    muon_divide_kernel<n><<<dim3(blocks, matrices), kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch(const MuonMomentum& p, cudaStream_t stream) {
  const bool whole = aligned(p.momentum, p.sum, p.grad);
  return with_type(p.dtype, [&](auto type) {
    return launch_elements(MomentumWork<typename decltype(type)::type>{p}, whole, stream);
  });
}

cudaError_t launch(const MuonApply& p, cudaStream_t stream) {
  const bool whole = aligned(p.weights, p.remainder, p.update);
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return p.remainder != nullptr ? launch_elements(ApplyWork<T, true>{p}, whole, stream)
                                  : launch_elements(ApplyWork<T, false>{p}, whole, stream);
  });
}

cudaError_t launch(const NormalizeMatrices& p, cudaStream_t stream) {
  if (p.matrices == 0 || p.rows * p.cols == 0) return cudaSuccess;
  constexpr int n = kFullPack<bf16>;
  const bool whole = aligned(p.from, p.to) && p.stride % n == 0 && p.rows * p.cols % n == 0;
  return whole ? launch_normalize<n>(p, stream) : launch_normalize<1>(p, stream);
}

}  // namespace stablemask::ops::cuda
