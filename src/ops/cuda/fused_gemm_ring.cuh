#pragma once

#include "src/ops/cuda/fused_gemm_tail.cuh"

/// The ring of slabs between the copy engine and the warps that multiply (fused_gemm.cuh). The
/// blocks of a cluster fill each other's slots: of the right operand each fetches its share for
/// all.

namespace stablemask::ops::cuda::fused_gemm {

constexpr int kCluster = 2;
constexpr int kSlab = 64;
constexpr int kStages = 4;
constexpr uint32_t kABytes = kTileRows * kSlab * 2;
constexpr uint32_t kBBytes = kTileColumns * kSlab * 2;
constexpr uint32_t kStageBytes = kABytes + kBBytes;

/// The slots that the copy engine fills and the warps empty, seen from one of them.
struct Ring {
  uint32_t slots, full, empty;
  int slot = 0;
  uint32_t phase = 0;

  __device__ void next() {
    if (++slot == kStages) slot = 0, phase ^= 1;
  }
  __device__ uint32_t a() const { return slots + slot * kStageBytes; }
  __device__ uint32_t b() const { return a() + kABytes; }
  __device__ uint32_t filled() const { return full + slot * 8; }
  __device__ uint32_t freed() const { return empty + slot * 8; }
  __device__ void await_filled() const { barrier_wait(filled(), phase); }
  __device__ void await_freed() const { barrier_wait(freed(), phase ^ 1); }
};

/// Tells both blocks of the cluster, which fill each other's slots, that this warp is done with
/// one.
__device__ __forceinline__ void release(uint32_t freed) {
  if (threadIdx.x % 32 < kCluster) barrier_arrive_at(freed, threadIdx.x % 32);
}

}  // namespace stablemask::ops::cuda::fused_gemm
