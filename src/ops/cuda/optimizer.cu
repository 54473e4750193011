// AdamW with decoupled weight decay on flat buffers, c1 = 1 − β1^t, c2 = 1 − β2^t:
//   g = grad_scale·grad,  m = β1·m + (1−β1)·g,  v = β2·v + (1−β2)·g²
//   w = (1 − lr·wd)·w − lr/c1 · m / (sqrt(v)/sqrt(c2) + eps)
// and Σ x² of such a buffer in fp64. bf16 moments are rounded by ops/rounding_rules.h.
//
// Parallelisation: AdamW runs one block per multiprocessor. Each thread iterates over packs of four
// elements and prefetches the next ones into shared memory with cp.async, in a pipeline of kStages;
// the scalars are computed in fp64 once per block. The sum runs kPartials blocks on any GPU; an
// element's position in the order of summation follows from its index. Memory traffic: AdamW 16
// bytes in and 12 out per element, with bf16 moments 12 and 8, the sum 4 bytes in.
#include "src/ops/cuda/split_weights.cuh"
#include "src/ops/rounding_rules.h"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;  // sum of squares
constexpr int kVec = 4;
constexpr int kAdamWThreads = 512;
constexpr int kSlotBytes = kAdamWThreads * 16;

/// What a thread copies for a pack of four elements, in slots of 16 bytes: weights, m, v and grad;
/// bf16 moments, of type uint16_t, share a slot.
template <typename M>
constexpr int kSlots = std::is_same_v<M, float> ? 4 : 3;

struct AdamWScalars {
  float grad_scale;
  float beta1, rest1;  ///< β1, 1 − β1
  float beta2, rest2;
  float keep;       ///< 1 − lr·wd
  float step_size;  ///< lr / c1
  float inv_sqrt2;  ///< 1 / sqrt(c2)
  float eps;
  rounding::Key key;  ///< of bf16 moments
};

template <typename M>
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
  if constexpr (!std::is_same_v<M, float>) {
    s.key = rounding::key_of(p.seed, static_cast<int64_t>(step));
  }
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

/// Moments in fp32.
template <int n>
__device__ __forceinline__ Pack<float, n> widened(const Pack<float, n>& moments) {
  return moments;
}

template <int n>
__device__ __forceinline__ Pack<float, n> widened(const Pack<uint16_t, n>& moments) {
  Pack<float, n> wide;
#pragma unroll
  for (int k = 0; k < n; ++k) wide.data[k] = __uint_as_float(uint32_t{moments.data[k]} << 16);
  return wide;
}

/// n neighbouring elements of each buffer.
template <int n>
struct Elements {
  Pack<float, n> weights, m, v, grad;
};

template <typename M, int n>
__device__ __forceinline__ void store_moments(const AdamW& p, const AdamWScalars& s, int64_t at,
                                              const Elements<n>& x) {
  if constexpr (std::is_same_v<M, float>) {
    store_streaming(static_cast<float*>(p.m) + at, x.m);
    store_streaming(static_cast<float*>(p.v) + at, x.v);
  } else {
    Pack<M, n> m, v;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const uint32_t random = rounding::bits_of(s.key, static_cast<uint64_t>(p.first + at + k));
      m.data[k] = rounding::bf16_of(x.m.data[k], random & 0xffffu);
      v.data[k] = rounding::bf16_of(x.v.data[k], random >> 16);
    }
    store_streaming(static_cast<M*>(p.m) + at, m);
    store_streaming(static_cast<M*>(p.v) + at, v);
  }
}

/// Updates the elements x at index `at` and stores them.
template <bool kSplit, typename M, int n>
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
  store_moments<M>(p, s, at, x);
}

__device__ __forceinline__ void copy_async(float4* to, const float* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

/// Copies 8 bytes each of two buffers.
__device__ __forceinline__ void copy_pair_async(float4* to, const void* first, const void* second) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile(
      "cp.async.ca.shared.global [%0], [%2], 8;\n"
      "cp.async.ca.shared.global [%1], [%3], 8;" ::"r"(address),
      "r"(address + 8), "l"(first), "l"(second)
      : "memory");
}

/// Copies a pack of weights; split weights as rounded values, then remainders.
template <bool kSplit>
__device__ __forceinline__ void copy_weights_async(float4* to, const AdamW& p, int64_t at) {
  if constexpr (kSplit) {
    copy_pair_async(to, static_cast<const uint16_t*>(p.weights) + at, p.remainder + at);
  } else {
    copy_async(to, static_cast<const float*>(p.weights) + at);
  }
}

/// Copies all that the update of a pack reads into a thread's slots of a stage.
template <bool kSplit, typename M>
__device__ __forceinline__ void copy_pack_async(float4* to, const AdamW& p, int64_t at) {
  copy_weights_async<kSplit>(to, p, at);
  const M *m = static_cast<const M*>(p.m) + at, *v = static_cast<const M*>(p.v) + at;
  if constexpr (std::is_same_v<M, float>) {
    copy_async(to + kAdamWThreads, m);
    copy_async(to + 2 * kAdamWThreads, v);
  } else {
    copy_pair_async(to + kAdamWThreads, m, v);
  }
  copy_async(to + (kSlots<M> - 1) * kAdamWThreads, p.grad + at);
}

template <bool kSplit>
__device__ __forceinline__ Pack<float, kVec> copied_weights(const float4* from) {
  if constexpr (kSplit) {
    return join(*reinterpret_cast<const Split<kVec>*>(from));
  } else {
    return *reinterpret_cast<const Pack<float, kVec>*>(from);
  }
}

template <bool kSplit, typename M>
__device__ __forceinline__ Elements<kVec> copied_pack(const float4* from) {
  const auto part = [&](int slot) {
    return *reinterpret_cast<const Pack<float, kVec>*>(from + slot * kAdamWThreads);
  };
  if constexpr (std::is_same_v<M, float>) {
    return {copied_weights<kSplit>(from), part(1), part(2), part(3)};
  } else {
    const auto* const moments = reinterpret_cast<const Pack<M, kVec>*>(from + kAdamWThreads);
    return {copied_weights<kSplit>(from), widened(moments[0]), widened(moments[1]), part(2)};
  }
}

/// Processes `packs` packs of four, then the remaining elements singly. kStages: pipeline depth.
template <bool kSplit, typename M, int kStages>
__global__ void __launch_bounds__(kAdamWThreads) adamw_kernel(const AdamW p, int64_t packs) {
  extern __shared__ float4 pipeline[];  // [kStages][kSlots][kAdamWThreads]
  __shared__ AdamWScalars shared;
  if (p.control[2] < 0.0) return;
  const int64_t first = int64_t{blockIdx.x} * kAdamWThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kAdamWThreads;
  const auto stage_address = [&](int stage) {
    return pipeline + stage * kSlots<M> * kAdamWThreads + threadIdx.x;
  };
  const auto fetch = [&](int64_t i, int stage) {
    if (i < packs) copy_pack_async<kSplit, M>(stage_address(stage), p, i * kVec);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(first + stage * stride, stage);
  if (threadIdx.x == 0) shared = adamw_scalars<M>(p);
  __syncthreads();
  const AdamWScalars s = shared;
  int stage = 0;
  for (int64_t i = first; i < packs; i += stride) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    const Elements<kVec> x = copied_pack<kSplit, M>(stage_address(stage));
    // The stage of the previous pack is free.
    fetch(i + (kStages - 1) * stride, stage == 0 ? kStages - 1 : stage - 1);
    adamw_update<kSplit, M, kVec>(p, s, i * kVec, x);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  for (int64_t i = packs * kVec + first; i < p.size; i += stride) {
    adamw_update<kSplit, M, 1>(
        p, s, i,
        {load_weights<kSplit, 1>(p.weights, p.remainder, i),
         widened(load<1>(static_cast<const M*>(p.m) + i)),
         widened(load<1>(static_cast<const M*>(p.v) + i)), load<1>(p.grad + i)});
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

template <bool kSplit, typename M, int kStages>
cudaError_t launch_adamw(const AdamW& p, cudaStream_t stream) {
  const auto kernel = adamw_kernel<kSplit, M, kStages>;
  constexpr int kBytes = kStages * kSlots<M> * kSlotBytes;
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

template <bool kSplit, typename M>
cudaError_t launch_adamw(const AdamW& p, cudaStream_t stream) {
  // The same bytes in flight for every type of moments.
  constexpr int kDeep = 24 / kSlots<M>, kShallow = 8 / kSlots<M>;
  int shared_bytes = 0;
  const cudaError_t error =
      device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_bytes);
  if (error != cudaSuccess) return error;
  // 24 slots and the scalars on GPUs with the shared memory of Hopper, otherwise 8 slots.
  return shared_bytes > 28 * kSlotBytes ? launch_adamw<kSplit, M, kDeep>(p, stream)
                                        : launch_adamw<kSplit, M, kShallow>(p, stream);
}

template <typename M>
cudaError_t launch_adamw(const AdamW& p, cudaStream_t stream) {
  return p.remainder != nullptr ? launch_adamw<true, M>(p, stream)
                                : launch_adamw<false, M>(p, stream);
}

}  // namespace

cudaError_t launch(const AdamW& p, cudaStream_t stream) {
  return p.bf16_moments ? launch_adamw<uint16_t>(p, stream) : launch_adamw<float>(p, stream);
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
