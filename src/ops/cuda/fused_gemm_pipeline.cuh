#pragma once

#include "src/ops/cuda/fused_gemm_epilogue.cuh"

/// Pipeline of k-blocks between the TMA producer and the consumer warps of fused_gemm.cuh. Both
/// blocks of a cluster fill each other's stages: each loads its share of B for both.

namespace stablemask::ops::cuda::fused_gemm {

constexpr int kCluster = 2;  // thread blocks per cluster
constexpr int kBlockK = 64;  // inner dimension of a stage
constexpr int kStages = 4;
constexpr uint32_t kABytes = kTileRows * kBlockK * 2;
constexpr uint32_t kBBytes = kTileColumns * kBlockK * 2;
constexpr uint32_t kStageBytes = kABytes + kBBytes;

/// Position of one producer or consumer in the pipeline: shared-memory addresses of the stages and
/// of their full and empty barriers, the current stage and the parity of its barriers.
struct Pipeline {
  uint32_t stages, full, empty;
  int stage = 0;
  uint32_t phase = 0;

  __device__ void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
  __device__ uint32_t a() const { return stages + stage * kStageBytes; }
  __device__ uint32_t b() const { return a() + kABytes; }
  __device__ uint32_t full_barrier() const { return full + stage * 8; }
  __device__ uint32_t empty_barrier() const { return empty + stage * 8; }
  __device__ void wait_full() const { barrier_wait(full_barrier(), phase); }
  __device__ void wait_empty() const { barrier_wait(empty_barrier(), phase ^ 1); }
};

/// Reports to both blocks of the cluster that this warp has read the stage of this empty barrier.
__device__ __forceinline__ void release(uint32_t empty_barrier) {
  if (threadIdx.x % 32 < kCluster) barrier_arrive_remote(empty_barrier, threadIdx.x % 32);
}

}  // namespace stablemask::ops::cuda::fused_gemm
