// AdamW with decoupled weight decay on flat buffers, c1 = 1 − β1^t, c2 = 1 − β2^t:
//   g = grad_scale·grad,  m = β1·m + (1−β1)·g,  v = β2·v + (1−β2)·g²
//   w = (1 − lr·wd)·w − lr/c1 · m / (sqrt(v)/sqrt(c2) + eps)
// and Σ x² of such a buffer in fp64.
//
// Parallelisation: AdamW runs one block per multiprocessor. Each thread iterates over packs of four
// elements and prefetches the next ones into shared memory with cp.async, in a pipeline of kStages;
// the scalars are computed in fp64 once per block. The sum runs kPartials blocks on any GPU; an
// element's position in the order of summation follows from its index. Memory traffic: AdamW 16
// bytes in and 12 out per element, the sum 4 bytes in.
#include "src/ops/cuda/split_weights.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;  // sum of squares
constexpr int kVec = 4;
constexpr int kAdamWThreads = 512;
constexpr int kBuffers = 4;  // read by an update: weights, m, v, grad
constexpr int kStageBytes = kBuffers * kAdamWThreads * 16;

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

/// The rounded weights stay in L2 for the next GEMMs; the remainder is stored evict-first.
template <bool kSplit, int n>
__device__ __forceinline__ void store_weights(const AdamW& p, int64_t at,
                                              const Pack<float, n>& weights) {
  if constexpr (kSplit) {
    const Split<n> result = split(weights);
    store<n>(static_cast<uint16_t*>(p.weights) + at, result.rounded);
    store_streaming(p.remainder + at, result.remainder);
  } else {
    store<n>(static_cast<float*>(p.weights) + at, weights);
  }
}

/// n neighbouring elements of each buffer.
template <int n>
struct Elements {
  Pack<float, n> weights, m, v, grad;
};

/// Updates the elements x at index `at` and stores them.
template <bool kSplit, int n>
__device__ __forceinline__ void adamw_update(const AdamW& p, const AdamWScalars& s, int64_t at,
                                             Elements<n> x) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float g = x.grad.data[k] * s.grad_scale;
    x.m.data[k] = s.beta1 * x.m.data[k] + s.rest1 * g;
    x.v.data[k] = s.beta2 * x.v.data[k] + s.rest2 * g * g;
    const float root = sqrtf(x.v.data[k]) * s.inv_sqrt2 + s.eps;
    x.weights.data[k] = s.keep * x.weights.data[k] - s.step_size * (x.m.data[k] / root);
  }
  store_weights<kSplit>(p, at, x.weights);
  store_streaming(p.m + at, x.m);
  store_streaming(p.v + at, x.v);
}

__device__ __forceinline__ void copy_async(float4* to, const float* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

/// Copies a pack of weights; split weights as rounded values, then remainders.
template <bool kSplit>
__device__ __forceinline__ void copy_weights_async(float4* to, const AdamW& p, int64_t at) {
  if constexpr (kSplit) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile(
        "cp.async.ca.shared.global [%0], [%2], 8;\n"
        "cp.async.ca.shared.global [%1], [%3], 8;" ::"r"(address),
        "r"(address + 8), "l"(static_cast<const uint16_t*>(p.weights) + at), "l"(p.remainder + at)
        : "memory");
  } else {
    copy_async(to, static_cast<const float*>(p.weights) + at);
  }
}

template <bool kSplit>
__device__ __forceinline__ Pack<float, kVec> copied_weights(const float4* from) {
  if constexpr (kSplit) {
    return join(*reinterpret_cast<const Split<kVec>*>(from));
  } else {
    return *reinterpret_cast<const Pack<float, kVec>*>(from);
  }
}

/// Processes `packs` packs of four, then the remaining elements singly. kStages: pipeline depth.
template <bool kSplit, int kStages>
__global__ void __launch_bounds__(kAdamWThreads) adamw_kernel(const AdamW p, int64_t packs) {
  extern __shared__ float4 pipeline[];  // [kStages][kBuffers][kAdamWThreads]
  __shared__ AdamWScalars shared;
  if (p.control[2] < 0.0) return;
  const int64_t first = int64_t{blockIdx.x} * kAdamWThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kAdamWThreads;
  const auto stage_address = [&](int stage) {
    return pipeline + stage * kBuffers * kAdamWThreads + threadIdx.x;
  };
  const auto fetch = [&](int64_t i, int stage) {
    if (i < packs) {
      float4* to = stage_address(stage);
      copy_weights_async<kSplit>(to, p, i * kVec);
      copy_async(to + kAdamWThreads, p.m + i * kVec);
      copy_async(to + 2 * kAdamWThreads, p.v + i * kVec);
      copy_async(to + 3 * kAdamWThreads, p.grad + i * kVec);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(first + stage * stride, stage);
  if (threadIdx.x == 0) shared = adamw_scalars(p);
  __syncthreads();
  const AdamWScalars s = shared;
  int stage = 0;
  for (int64_t i = first; i < packs; i += stride) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    const float4* from = stage_address(stage);
    const auto part = [&](int buffer) {
      return *reinterpret_cast<const Pack<float, kVec>*>(from + buffer * kAdamWThreads);
    };
    const Elements<kVec> x{copied_weights<kSplit>(from), part(1), part(2), part(3)};
    // The stage of the previous pack is free.
    fetch(i + (kStages - 1) * stride, stage == 0 ? kStages - 1 : stage - 1);
    adamw_update<kSplit, kVec>(p, s, i * kVec, x);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  for (int64_t i = packs * kVec + first; i < p.size; i += stride) {
    adamw_update<kSplit, 1>(p, s, i,
                            {load_weights<kSplit, 1>(p.weights, p.remainder, i), load<1>(p.m + i),
                             load<1>(p.v + i), load<1>(p.grad + i)});
  }
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

/// kWhole: x is 16-byte aligned and read by packs; the order of the additions does not change.
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

template <bool kSplit, int kStages>
cudaError_t launch_adamw(const AdamW& p, cudaStream_t stream) {
  const auto kernel = adamw_kernel<kSplit, kStages>;
  constexpr int kBytes = kStages * kStageBytes;
  int multiprocessors = 0;
  cudaError_t error = device_attribute(cudaDevAttrMultiProcessorCount, &multiprocessors);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  }
  if (error != cudaSuccess) return error;
  const bool whole = aligned(p.weights, p.remainder, p.m, p.v, p.grad);
  const int64_t packs = whole ? p.size / kVec : 0;
  const int64_t items = std::max(packs, p.size - packs * kVec);
  const auto blocks = static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div<int64_t>(items, kAdamWThreads), 1, multiprocessors));
  kernel<<<blocks, kAdamWThreads, kBytes, stream>>>(p, packs);
  return cudaGetLastError();
}

template <bool kSplit>
cudaError_t launch_adamw(const AdamW& p, cudaStream_t stream) {
  int shared_bytes = 0;
  const cudaError_t error =
      device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_bytes);
  if (error != cudaSuccess) return error;
  // Six stages and the scalars on GPUs with the shared memory of Hopper, otherwise two stages.
  return shared_bytes > 7 * kStageBytes ? launch_adamw<kSplit, 6>(p, stream)
                                        : launch_adamw<kSplit, 2>(p, stream);
}

}  // namespace

cudaError_t launch(const AdamW& p, cudaStream_t stream) {
  return p.remainder != nullptr ? launch_adamw<true>(p, stream) : launch_adamw<false>(p, stream);
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
