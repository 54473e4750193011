// Exponential moving average of flat weights, average += (1 − d)·(w − average).
//
// Parallelisation: a few blocks per multiprocessor iterate over tiles; each thread has the loads of
// kUnroll packs of four elements in flight before it computes the first. Memory traffic: 8 bytes in
// and 4 out per element, of fp32 and of split weights.
#include "src/ops/cuda/ema.h"

#include "src/ops/cuda/split_weights.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kVec = 4;
constexpr int kUnroll = 4;

template <int n>
__device__ __forceinline__ Pack<float, n> approach(Pack<float, n> average,
                                                   const Pack<float, n>& weights, float rest) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
    average.data[k] = fmaf(rest, weights.data[k] - average.data[k], average.data[k]);
  }
  return average;
}

/// Processes `packs` packs of four, then the remaining elements singly.
template <bool kSplit>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    ema_kernel(const Ema p, int64_t packs) {
  if (p.control[2] < 0.0) return;
  const double t = p.control[1];
  const auto rest = static_cast<float>(1.0 - fmin(p.decay, (1.0 + t) / (10.0 + t)));
  constexpr int64_t kTile = int64_t{kThreads} * kUnroll;
  for (int64_t tile = blockIdx.x * kTile; tile < packs; tile += gridDim.x * kTile) {
    Pack<float, kVec> weights[kUnroll], average[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = tile + u * kThreads + threadIdx.x;
      if (i >= packs) continue;
      weights[u] = load_weights<kSplit, kVec>(p.weights, p.remainder, i * kVec);
      average[u] = load<kVec>(p.average + i * kVec);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = tile + u * kThreads + threadIdx.x;
      if (i < packs) {
        store_streaming(p.average + i * kVec, approach(average[u], weights[u], rest));
      }
    }
  }
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = packs * kVec + blockIdx.x * int64_t{kThreads} + threadIdx.x; i < p.size;
       i += stride) {
    const auto weight = load_weights<kSplit, 1>(p.weights, p.remainder, i);
    store_streaming(p.average + i, approach(load<1>(p.average + i), weight, rest));
  }
}

}  // namespace

cudaError_t launch(const Ema& p, cudaStream_t stream) {
  int multiprocessors = 0;
  const cudaError_t error = device_attribute(cudaDevAttrMultiProcessorCount, &multiprocessors);
  if (error != cudaSuccess) return error;
  const int64_t packs = aligned(p.average, p.weights, p.remainder) ? p.size / kVec : 0;
  const int64_t items = std::max(packs, p.size - packs * kVec);
  const auto blocks = static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div<int64_t>(items, kThreads * kUnroll), 1,
                          int64_t{kBlocksPerMultiprocessor} * multiprocessors));
  const auto kernel = p.remainder != nullptr ? ema_kernel<true> : ema_kernel<false>;
  kernel<<<blocks, kThreads, 0, stream>>>(p, packs);
  return cudaGetLastError();
}

}  // namespace stablemask::ops::cuda
