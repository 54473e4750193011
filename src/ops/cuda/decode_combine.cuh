#pragma once

#include "src/ops/cuda/decode_token.cuh"
#include "src/ops/cuda/hopper.cuh"

/// Shared by the kernels of ops::decode_attention (decode.cu describes the whole): the combination
/// of partial results and the launch.
namespace stablemask::ops::cuda::decoding {

/// Adds up `count` ≤ kMost parts, each with a largest score, a sum and one number of the output.
/// All parts are read before the first use: those of other blocks are far away.
template <typename T, int kMost, typename Part>
__device__ __forceinline__ float3 combined(int count, const Part& part) {
  float3 parts[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    parts[i] = i < count ? part(i) : make_float3(kLowest, 0.0f, 0.0f);
  }
  float3 total = make_float3(kLowest, 0.0f, 0.0f);
#pragma unroll
  for (const float3& x : parts) total.x = fmaxf(total.x, x.x);
#pragma unroll
  for (const float3& x : parts) {
    const float factor = exp2_as<T>(x.x - total.x);
    total.y += factor * x.y;
    total.z += factor * x.z;
  }
  return total;
}

/// Weighted values over the sum of all weights and the pseudo mass.
__device__ __forceinline__ float normalised(const float3& total, float log_mass) {
  return total.z / (total.y + exp2f(log_mass - total.x));
}

/// Combines warps, then blocks, and writes the output.
template <typename T, typename Query, int kDim, int kGroup>
__device__ __forceinline__ void finish(const Decode& p, const Share& s,
                                       Shared<T, Query, kDim, kGroup>& shared) {
  T* out = static_cast<T*>(p.out) + (int64_t{blockIdx.z} * p.heads + s.first_head) * p.dim;
  for (int i = threadIdx.x; i < s.heads * p.dim; i += kThreads) {
    const int g = i / p.dim;
    const int d = i % p.dim;
    const float3 total = combined<T, kWarps>(kWarps, [&](int warp) {
      return make_float3(shared.warp_largest[warp][g], shared.warp_sum[warp][g],
                         shared.warp_out[warp][g][d]);
    });
    if (s.active == 1) {
      out[i] = from_float<T>(normalised(total, shared.log_mass[g]));
      continue;
    }
    shared.out[g][d] = total.z;
    if (d == 0) {
      shared.largest[g] = total.x;
      shared.sum[g] = total.y;
    }
  }
#if __CUDA_ARCH__ >= 900
  if (s.active == 1) return;
  hopper::cluster_sync();
  const int rank = blockIdx.x;
  for (int i = rank * kThreads + threadIdx.x; i < s.heads * p.dim; i += s.active * kThreads) {
    const int g = i / p.dim;
    const int d = i % p.dim;
    const float3 total = combined<T, Decode::kMostSplits>(s.active, [&](int block) {
      const auto* other = hopper::shared_in_block(&shared, block);
      return make_float3(other->largest[g], other->sum[g], other->out[g][d]);
    });
    out[i] = from_float<T>(normalised(total, shared.log_mass[g]));
  }
  hopper::cluster_sync();  // no block may end while others read its memory
#endif
}

/// Launches `kernel`, or `kernel_of_few` where blocks share the keys of a head, whose blocks take
/// up to `group` query heads of a key/value head; `keys_of_block` is a share that is worth a
/// block's start.
inline cudaError_t launch_clusters(void (*kernel)(Decode), void (*kernel_of_few)(Decode), Decode p,
                                   int group, int keys_of_block, cudaStream_t stream) {
  int processors = 0;
  int major = 0;
  cudaError_t error = device_attribute(cudaDevAttrMultiProcessorCount, &processors);
  if (error == cudaSuccess) {
    error = device_attribute(cudaDevAttrComputeCapabilityMajor, &major);
  }
  if (error != cudaSuccess) return error;
  const int parts = p.kv_heads * ceil_div(p.heads / p.kv_heads, group);
  if (p.splits == 0) {
    const int64_t keys = p.window > 0 ? std::min<int64_t>(p.window, p.slots) : p.slots;
    // A cluster costs more than it gains where a block per processor is at work without it.
    const int64_t most = std::min(int64_t{3} * processors / (int64_t{2} * parts * p.batch),
                                  ceil_div<int64_t>(keys, keys_of_block));
    p.splits = 1;
    while (2 * p.splits <= most && p.splits < Decode::kMostSplits) p.splits *= 2;
  }
  if (major < 9) p.splits = 1;  // no clusters

  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (p.overlapped) attributes[count++] = overlapped_launch();
  if (p.splits > 1) {
    cudaLaunchAttribute& cluster = attributes[count++] = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(p.splits);
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(p.splits), static_cast<unsigned>(parts),
                        static_cast<unsigned>(p.batch));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, p.splits > 1 ? kernel_of_few : kernel, p);
}

/// Kernel for groups of query heads in bf16 (decode_group.cu).
bool has_group_kernel(const Decode& p);
cudaError_t launch_group_kernel(const Decode& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda::decoding
