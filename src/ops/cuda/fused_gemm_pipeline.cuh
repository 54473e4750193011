#pragma once

#include "src/ops/cuda/fused_gemm_epilogue.cuh"

/// Operands and tiles of a GEMM, and the pipeline of k-blocks between the TMA producer and the
/// consumer warps of fused_gemm.cuh. Both blocks of a cluster fill each other's stages: each loads
/// its share of B for both.

namespace stablemask::ops::cuda::fused_gemm {

constexpr int kCluster = 2;                  // thread blocks per cluster
constexpr int kRasterGroup = 16 / kCluster;  // row tiles of a cluster per raster group
constexpr int kBlockBytes = 128;  // of a row or column of a stage: its share of the inner dimension
constexpr int kBlockK = kBlockBytes / 2;  // in bf16 numbers
constexpr int kStages = 4;
constexpr uint32_t kABytes = kTileRows * kBlockBytes;
constexpr uint32_t kBBytes = kTileColumns * kBlockBytes;
constexpr uint32_t kStageBytes = kABytes + kBBytes;

struct Operands {
  CUtensorMap a;
  CUtensorMap b[2];  // one for each half of a tile's columns
};

/// The result is that of the first operands or, with k-blocks of a second pair after theirs, the
/// sum of both products. What the last k-block of a pair lacks is zero: so TMA fills what lies
/// outside a matrix.
///
/// An Epilogue defines
///   kFp8        the factors are e4m3, both K-major, with a scale each; else bf16
///   kColumns    output columns per tile
///   kMnMajorB   B is stored [K, N] (MN-major) instead of [N, K] (K-major)
///   kOwnTiles   it defines tile_at(tile, rank), the order of the tiles, and finish(sums, at) for
///               the warp's sums before they are rounded
///   kSlices     number of pieces that the work on a tile is divided into
///   LaneState   values that a lane keeps from slice to slice
///   begin(scratch, state, at)                      before the first tile, whose origin is `at`
///   run<slice>(result, at, scratch, state, next)   next: origin of the following tile, or null
template <typename Epilogue>
struct GemmParams {
  Operands first, second;
  Epilogue epilogue;
  int row_tiles, column_tiles;         // row_tiles count tiles of a whole cluster
  int k_blocks, first_k_blocks;        // all, and those of the first pair
  const float *a_inverse, *b_inverse;  // FP8: the inverse scales of the first pair, the only one

  static constexpr int kInner = Epilogue::kFp8 ? kBlockBytes : kBlockK;  // numbers of a k-block

  __host__ __device__ int tiles() const { return row_tiles * column_tiles; }

  /// Raster order: groups of kRasterGroup row tiles, column by column inside a group.
  __device__ TileOrigin tile_at(int tile, int rank) const {
    if constexpr (Epilogue::kOwnTiles) return epilogue.tile_at(tile, rank);
    const int group = tile / (kRasterGroup * column_tiles);
    const int first = group * kRasterGroup;
    const int height = min(kRasterGroup, row_tiles - first);
    const int within = tile - first * column_tiles;
    return {(kCluster * (first + within % height) + rank) * kTileRows,
            within / height * Epilogue::kColumns};
  }
};

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

/// d (+)= the warp group's 64 rows of A times B for the current stage; does not wait.
template <typename Epilogue>
__device__ __forceinline__ void multiply_k_block(float (&d)[128], const Pipeline& pipeline,
                                                 int group, bool first) {
  const uint32_t a = pipeline.a() + group * kABytes / 2, b = pipeline.b();
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kBlockBytes / 32; ++k) {
    const uint32_t b_step = Epilogue::kMnMajorB ? 16 * 128 : 32;
    const uint64_t left = matrix_descriptor(a + 32 * k, 16);
    const uint64_t right = matrix_descriptor(b + b_step * k, kBBytes / 4);
    if constexpr (Epilogue::kFp8) {
      wgmma_64x256x32(d, left, right, !first || k > 0);
    } else {
      wgmma_64x256x16<Epilogue::kMnMajorB>(d, left, right, !first || k > 0);
    }
  }
  wgmma_commit();
}

}  // namespace stablemask::ops::cuda::fused_gemm
