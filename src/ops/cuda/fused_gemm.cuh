#pragma once

#include <cuda.h>

#include "src/ops/cuda/fused_gemm_epilogue.cuh"
#include "src/ops/cuda/fused_gemm_pipeline.cuh"

/// Persistent bf16 or e4m3 GEMM for Hopper (sm_90a), fp32 sums in a fixed order. The Epilogue is
/// the work on a finished output tile; it runs between the matrix instructions of the next tile.
///
/// Parallelisation: clusters of two thread blocks walk over output tiles of 256 rows x 256 columns.
/// Each block computes 128 rows; both use the same columns of B, of which each block loads one half
/// and multicasts it to both. Inside a block one thread of the producer warp group issues TMA loads
/// into a pipeline of four stages, each one k-block of 64. Two consumer warp groups of four warps
/// each multiply 64 rows by 256 columns with wgmma and accumulate in registers. A finished tile is
/// rounded to bf16, which halves its registers and frees the accumulators for the next tile; each
/// warp then runs its 16 rows through the epilogue, one slice after every few k-blocks.
///
/// Memory traffic: operands once, as far as L2 keeps a k-block for the clusters that share it:
/// groups of 2,048 rows are rasterised over all columns. Epilogue data moves evict-first.

namespace stablemask::ops::cuda::fused_gemm {

constexpr int kThreads = 384;
constexpr int kWarps = 8;  // consumer warps; the block's first four are the producer group
constexpr uint32_t kBarriers = 2 * kStages + kWarps;
constexpr uint32_t kSharedBytes =
    1024 + kStages * kStageBytes + 2 * kWarps * kBufferBytes + 8 * kBarriers;

/// Producer thread: loads every k-block of every tile of its cluster into the pipeline.
template <typename Epilogue>
__device__ __forceinline__ void produce(const GemmParams<Epilogue>& p, Pipeline pipeline, int rank,
                                        int cluster, int clusters) {
  constexpr int kShare = kTileColumns / kCluster;  // columns of B that this block loads
  constexpr uint16_t kAll = (1 << kCluster) - 1;
  for (int tile = cluster; tile < p.tiles(); tile += clusters) {
    const TileOrigin at = p.tile_at(tile, rank);
    for (int k_block = 0; k_block < p.k_blocks; ++k_block, pipeline.advance()) {
      pipeline.wait_empty();
      const bool is_first = k_block < p.first_k_blocks;
      const Operands& from = is_first ? p.first : p.second;
      const int k = (is_first ? k_block : k_block - p.first_k_blocks) * p.kInner;
      const uint32_t full = pipeline.full_barrier();
      barrier_arrive_expect_bytes(full, kStageBytes);
      tma_load<false>(pipeline.a(), from.a, k, at.row, full);
      const uint32_t b = pipeline.b() + rank * kBBytes / kCluster;
      if constexpr (Epilogue::kMnMajorB) {
        for (int i = 0; i < kShare / 64; ++i) {
          const int column = at.column + kShare * rank + 64 * i;
          tma_load_multicast(b + i * kBBytes / 4, from.b[0], column, k, full, kAll);
        }
      } else {
        const int first = Epilogue::kColumns == kTileColumns ? kShare * rank : 0;
        tma_load_multicast(b, from.b[rank], k, at.column + first, full, kAll);
      }
    }
  }
}

/// Consumer warp: multiplies every tile of its cluster and runs the epilogue of the previous one.
template <typename Epilogue>
__device__ __forceinline__ void consume(const GemmParams<Epilogue>& p, Pipeline pipeline,
                                        const WarpScratch scratch, int rank, int cluster,
                                        int clusters) {
  const int warp = threadIdx.x / 32 - 4, group = warp / 4;
  const auto origin = [&](int tile) {
    const auto [row, column] = p.tile_at(tile, rank);
    return TileOrigin{row + kWarpRows * warp, column};
  };
  float d[128];
  ResultTile result;
  typename Epilogue::LaneState state;
  TileOrigin previous{}, at = origin(cluster);
  p.epilogue.begin(scratch, state, at);
  int slice = Epilogue::kSlices;  // next slice of the previous tile; kSlices: none is left
  for (int tile = cluster; tile < p.tiles(); tile += clusters) {
    at = origin(tile);
    const TileOrigin* const next = &at;
    uint32_t last_empty = 0;
    for (int k_block = 0; k_block < p.k_blocks; ++k_block) {
      pipeline.wait_full();
      multiply_k_block<Epilogue>(d, pipeline, group, k_block == 0);
      // The previous k-block has been read; TMA may refill its stage during the epilogue's work.
      wgmma_wait<1>();
      if (k_block > 0) release(last_empty);
      // Slices are spread evenly over the k-blocks. The second warp group runs half a slice later,
      // so that one group feeds the tensor cores while the other works on its epilogue.
      while (slice < Epilogue::kSlices &&
             (2 * slice + group) * p.k_blocks < 2 * (k_block + 1) * Epilogue::kSlices) {
        run_slice(p.epilogue, slice++, result, previous, scratch, state, next);
      }
      last_empty = pipeline.empty_barrier();
      pipeline.advance();
    }
    wgmma_wait<0>();
    release(last_empty);
    fence_accumulators(d);
    if constexpr (Epilogue::kFp8) {
      const float scale = *p.a_inverse * *p.b_inverse;
#pragma unroll
      for (int i = 0; i < 128; ++i) d[i] *= scale;
    }
    if constexpr (Epilogue::kOwnTiles) p.epilogue.finish(d, at);
#pragma unroll
    for (int i = 0; i < 64; ++i) result.pairs[i] = pack2(d[2 * i], d[2 * i + 1]);
    previous = at;
    slice = 0;
  }
  const TileOrigin* const none = nullptr;
  while (slice < Epilogue::kSlices) {
    run_slice(p.epilogue, slice++, result, previous, scratch, state, none);
  }
  if (first_lane()) tma_store_wait_read<0>();
}

template <typename Epilogue>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ GemmParams<Epilogue> p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t shared[];
  const uint32_t stages = (shared_address(shared) + 1023) & ~1023u;
  const uint32_t buffers = stages + kStages * kStageBytes;
  const uint32_t barriers = buffers + 2 * kWarps * kBufferBytes;
  const Pipeline pipeline{stages, barriers, barriers + kStages * 8};
  const uint32_t scratch_barriers = barriers + 2 * kStages * 8;
  const int rank = static_cast<int>(cluster_rank());
  const int cluster = blockIdx.x / kCluster, clusters = gridDim.x / kCluster;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(pipeline.full + 8 * i, 1);
      barrier_init(pipeline.empty + 8 * i, kCluster * kWarps);
    }
    for (int i = 0; i < kWarps; ++i) barrier_init(scratch_barriers + 8 * i, 1);
    barrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x < 128) {
    setmaxnreg_dec<24>();
    if (threadIdx.x == 0) produce(p, pipeline, rank, cluster, clusters);
  } else {
    setmaxnreg_inc<240>();
    const int warp = threadIdx.x / 32 - 4;
    const WarpScratch scratch{buffers + 2 * warp * kBufferBytes, scratch_barriers + 8 * warp};
    consume(p, pipeline, scratch, rank, cluster, clusters);
  }
  __syncwarp();
  cluster_sync();  // no block may exit while its peer can still write to its shared memory
#else
  __trap();
#endif
}

}  // namespace stablemask::ops::cuda::fused_gemm
