// AdamW with decoupled weight decay on flat fp32 buffers, c1 = 1 − β1^t, c2 = 1 − β2^t:
//   g = grad_scale·grad,  m = β1·m + (1−β1)·g,  v = β2·v + (1−β2)·g²
//   w = (1 − lr·wd)·w − lr/c1 · m / (sqrt(v)/sqrt(c2) + eps),  compute = bf16(w)
// and Σ x² of such a buffer in fp64.
//
// Parallelisation: AdamW runs as many blocks as fit and strides through the buffers by packs of
// four; the scalars are formed in fp64 once per block, on the device. The sum runs kPartials blocks
// on any GPU; each element's place in the order of the sum follows from its index. Memory traffic:
// AdamW 16 bytes in and 12 out per element, 14 with the bf16 copy; the sum 4 bytes in.
#include "src/ops/cuda/common.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVec = 4;

struct AdamWScalars {
  float grad_scale;
  float beta1, rest1;  ///< β1, 1 − β1
  float beta2, rest2;
  float keep;       ///< 1 − lr·wd
  float step_size;  ///< lr / c1
  float inv_sqrt2;  ///< 1 / sqrt(c2)
  float eps;
};

__device__ AdamWScalars adamw_scalars(const AdamW& p) {
  const double lr = p.control[0], step = p.control[1], scale = p.control[2];
  AdamWScalars s;
  s.grad_scale = static_cast<float>(scale);
  s.beta1 = static_cast<float>(p.beta1);
  s.rest1 = static_cast<float>(1.0 - p.beta1);
  s.beta2 = static_cast<float>(p.beta2);
  s.rest2 = static_cast<float>(1.0 - p.beta2);
  s.keep = static_cast<float>(1.0 - lr * p.weight_decay);
  s.step_size = static_cast<float>(lr / (1.0 - pow(p.beta1, step)));
  s.inv_sqrt2 = static_cast<float>(1.0 / sqrt(1.0 - pow(p.beta2, step)));
  s.eps = static_cast<float>(p.eps);
  return s;
}

template <int n>
__device__ __forceinline__ void adamw_update(const AdamW& p, const AdamWScalars& s, int64_t at) {
  Pack<float, n> w = load<n>(p.master + at);
  Pack<float, n> m = load<n>(p.m + at);
  Pack<float, n> v = load<n>(p.v + at);
  const Pack<float, n> grad = load<n>(p.grad + at);
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float g = grad.data[k] * s.grad_scale;
    m.data[k] = s.beta1 * m.data[k] + s.rest1 * g;
    v.data[k] = s.beta2 * v.data[k] + s.rest2 * g * g;
    const float root = sqrtf(v.data[k]) * s.inv_sqrt2 + s.eps;
    w.data[k] = s.keep * w.data[k] - s.step_size * (m.data[k] / root);
  }
  store<n>(p.master + at, w);
  store<n>(p.m + at, m);
  store<n>(p.v + at, v);
  if (p.compute != nullptr) store<n>(static_cast<bf16*>(p.compute) + at, pack<bf16>(w.data));
}

/// `packs` packs of four from the start, the rest one by one.
__global__ void __launch_bounds__(kThreads) adamw_kernel(const AdamW p, int64_t packs) {
  __shared__ AdamWScalars shared;
  if (threadIdx.x == 0) shared = adamw_scalars(p);
  __syncthreads();
  const AdamWScalars s = shared;
  if (s.grad_scale < 0.0f) return;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = first; i < packs; i += stride) adamw_update<kVec>(p, s, i * kVec);
  for (int64_t i = packs * kVec + first; i < p.size; i += stride) adamw_update<1>(p, s, i);
}

__device__ double block_sum(double x) {
  __shared__ double warps[kThreads / 32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0.0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) sum += warps[w];
  return sum;
}

/// kWhole: x is aligned, a pack is one access; the order of the additions is the same.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads) squares_kernel(const SumOfSquares p) {
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t stride = int64_t{SumOfSquares::kPartials} * kThreads;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = first; i < p.size / kVec; i += stride) {
    Pack<float, kVec> x;
    if constexpr (kWhole) {
      x = load<kVec>(p.x + i * kVec);
    } else {
#pragma unroll
      for (int k = 0; k < kVec; ++k) x.data[k] = p.x[i * kVec + k];
    }
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const auto wide = static_cast<double>(x.data[k]);
      sum = fma(wide, wide, sum);
    }
  }
  if (first < p.size % kVec) {
    const auto wide = static_cast<double>(p.x[p.size / kVec * kVec + first]);
    sum = fma(wide, wide, sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) p.partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) add_squares_kernel(const SumOfSquares p) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < SumOfSquares::kPartials; i += kThreads) sum += p.partials[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *p.result = sum;
}

}  // namespace

cudaError_t launch(const AdamW& p, cudaStream_t stream) {
  int resident = 0;
  const cudaError_t error = resident_blocks(adamw_kernel, kThreads, &resident);
  if (error != cudaSuccess) return error;
  const bool whole = aligned(p.master, p.compute, p.m, p.v, p.grad);
  const int64_t packs = whole ? p.size / kVec : 0;
  const int64_t items = std::max(packs, p.size - packs * kVec);
  const auto blocks =
      static_cast<unsigned>(std::clamp<int64_t>(ceil_div<int64_t>(items, kThreads), 1, resident));
  adamw_kernel<<<blocks, kThreads, 0, stream>>>(p, packs);
  return cudaGetLastError();
}

cudaError_t launch(const SumOfSquares& p, cudaStream_t stream) {
  const auto kernel = aligned(p.x) ? squares_kernel<true> : squares_kernel<false>;
  kernel<<<SumOfSquares::kPartials, kThreads, 0, stream>>>(p);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  add_squares_kernel<<<1, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace stablemask::ops::cuda
