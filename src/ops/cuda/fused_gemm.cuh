#pragma once

#include <cuda.h>

#include "src/ops/cuda/fused_gemm_ring.cuh"
#include "src/ops/cuda/fused_gemm_tail.cuh"

/// A bf16 matrix product for Hopper whose tail, the work on a finished tile of the result, is a
/// parameter and runs under the product of the next tile. fp32 sums in a fixed order.
///
/// Parallelisation: two blocks form a cluster that walks over tiles of 256 rows x 256 columns, each
/// block with its 128 rows, both with the same columns, of which each fetches one half for both. In
/// a block one warp drives the copy engine, which fills a ring of four slots with slabs of 64 inner
/// columns; two groups of four warps each multiply 64 rows by 256 columns and hold the sums in
/// registers. A finished tile is rounded to bf16, which halves its registers, and makes room for
/// the next one's sums; between the next slabs' asynchronous products each warp works off its 16
/// rows, one slice of the tail after another.
///
/// Memory traffic: operands once, as far as the L2 cache keeps a slab for the clusters that share
/// it: groups of 2,048 rows go over all columns. What the tail reads and writes is its own, and
/// leaves that cache first.
///
/// Tried and slower on an H100, whose clock falls under full load at 700 W: clusters of four blocks
/// (30 of them fit, so 12 of 132 multiprocessors idle), the tail's operands prefetched to the L2
/// cache, strict turns between the two groups, slots released after the tail's slice, the angles of
/// the rotation loaded a slice ahead, smaller slices, warps of their own for the tail or for what
/// it reads. No better: groups of 4,096 or 8,192 rows, every second group's columns backwards.

namespace stablemask::ops::cuda::fused_gemm {

constexpr int kGroup = 16 / kCluster;  // tiles of a cluster that go over the columns together
constexpr int kThreads = 384;
constexpr int kWarps = 8;  // that multiply; the first four of the block fetch
constexpr uint32_t kBarriers = 2 * kStages + kWarps;
constexpr uint32_t kSharedBytes =
    1024 + kStages * kStageBytes + 2 * kWarps * kBlockBytes + 8 * kBarriers;

/// A Tail has
///   kColumns     columns of the result in a tile
///   kInnerRows   whether the right operand is stored [inner, columns], else [columns, inner]
///   kSlices      pieces of its work
///   State        what a lane keeps from slice to slice
///   begin(own, state, at)                          before the first tile, which lies at `at`
///   run<slice>(finished, at, own, state, next)     next: where the tile after it lies, or null
template <typename Tail>
struct Product {
  CUtensorMap a;
  CUtensorMap b[2];  // of the two halves of a tile's columns
  Tail tail;
  int row_tiles, column_tiles, slabs;  // of a cluster's rows

  __host__ __device__ int tiles() const { return row_tiles * column_tiles; }

  /// Groups of kGroup pairs of row tiles, column by column.
  __device__ Place tile_at(int tile, int rank) const {
    const int group = tile / (kGroup * column_tiles);
    const int first = group * kGroup;
    const int height = min(kGroup, row_tiles - first);
    const int within = tile - first * column_tiles;
    return {(kCluster * (first + within % height) + rank) * kTileRows,
            within / height * Tail::kColumns};
  }
};

template <typename Tail>
__device__ __forceinline__ void fetch_all(const Product<Tail>& p, Ring ring, int rank, int cluster,
                                          int clusters) {
  constexpr int kShare = kTileColumns / kCluster;  // of the right operand's columns
  const uint32_t share = rank * kBBytes / kCluster;
  constexpr uint16_t kAll = (1 << kCluster) - 1;
  for (int tile = cluster; tile < p.tiles(); tile += clusters) {
    const Place at = p.tile_at(tile, rank);
    for (int slab = 0; slab < p.slabs; ++slab, ring.next()) {
      ring.await_freed();
      barrier_expect(ring.filled(), kStageBytes);
      copy_tile<false>(ring.a(), p.a, slab * kSlab, at.row, ring.filled());
      if constexpr (Tail::kInnerRows) {
        for (int i = 0; i < kShare / 64; ++i) {
          copy_tile_to_all(ring.b() + share + i * kBBytes / 4, p.b[0],
                           at.column + kShare * rank + 64 * i, slab * kSlab, ring.filled(), kAll);
        }
      } else {
        const int first = Tail::kColumns == kTileColumns ? at.column + kShare * rank : at.column;
        copy_tile_to_all(ring.b() + share, p.b[rank], slab * kSlab, first, ring.filled(), kAll);
      }
    }
  }
}

template <typename Tail>
__device__ __forceinline__ void multiply_slab(float (&d)[128], const Ring& ring, int group,
                                              bool first) {
  const uint32_t a = ring.a() + group * kABytes / 2, b = ring.b();
  products_begin();
#pragma unroll
  for (int k = 0; k < kSlab / 16; ++k) {
    const uint32_t b_step = Tail::kInnerRows ? 16 * 128 : 32;
    product_64x256x16<Tail::kInnerRows>(d, matrix_descriptor(a + 32 * k, 16),
                                        matrix_descriptor(b + b_step * k, kBBytes / 4),
                                        !first || k > 0);
  }
  products_commit();
}

template <int slice = 0, typename Tail, typename... Arguments>
__device__ __forceinline__ void run_slice(const Tail& tail, int wanted, Arguments&... arguments) {
  if (wanted == slice) {
    tail.template run<slice>(arguments...);
  } else if constexpr (slice + 1 < Tail::kSlices) {
    run_slice<slice + 1>(tail, wanted, arguments...);
  }
}

template <typename Tail>
__device__ __forceinline__ void multiply_all(const Product<Tail>& p, Ring ring, const Own own,
                                             int rank, int cluster, int clusters) {
  const int warp = threadIdx.x / 32 - 4, group = warp / 4;
  const auto place = [&](int tile) {
    const Place at = p.tile_at(tile, rank);
    return Place{at.row + kWarpRows * warp, at.column};
  };
  float d[128];
  Finished finished;
  typename Tail::State state;
  Place before{}, at = place(cluster);
  p.tail.begin(own, state, at);
  int slice = Tail::kSlices;  // of the tile before: none
  for (int tile = cluster; tile < p.tiles(); tile += clusters) {
    at = place(tile);
    const Place* const next = &at;
    uint32_t last = 0;
    for (int slab = 0; slab < p.slabs; ++slab) {
      ring.await_filled();
      multiply_slab<Tail>(d, ring, group, slab == 0);
      // The slab before is done; the copy engine may fill its slot under the tail's work.
      products_wait<1>();
      if (slab > 0) release(last);
      // The slices are spread over the slabs, the second group's half a step behind the first's, so
      // that one of the two groups feeds the tensor cores while the other works off its tail.
      while (slice < Tail::kSlices &&
             (2 * slice + group) * p.slabs < 2 * (slab + 1) * Tail::kSlices) {
        run_slice(p.tail, slice++, finished, before, own, state, next);
      }
      last = ring.freed();
      ring.next();
    }
    products_wait<0>();
    release(last);
    products_end(d);
#pragma unroll
    for (int i = 0; i < 64; ++i) finished.pairs[i] = pack2(d[2 * i], d[2 * i + 1]);
    before = at;
    slice = 0;
  }
  const Place* const none = nullptr;
  while (slice < Tail::kSlices) {
    run_slice(p.tail, slice++, finished, before, own, state, none);
  }
  if (first_lane()) await_writes_read<0>();
}

template <typename Tail>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Product<Tail> p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t shared[];
  const uint32_t slots = (shared_address(shared) + 1023) & ~1023u;
  const uint32_t blocks = slots + kStages * kStageBytes;
  const uint32_t barriers = blocks + 2 * kWarps * kBlockBytes;
  const Ring ring{slots, barriers, barriers + kStages * 8};
  const uint32_t own_barriers = barriers + 2 * kStages * 8;
  const int rank = static_cast<int>(cluster_rank());
  const int cluster = blockIdx.x / kCluster, clusters = gridDim.x / kCluster;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(ring.full + 8 * i, 1);
      barrier_init(ring.empty + 8 * i, kCluster * kWarps);
    }
    for (int i = 0; i < kWarps; ++i) barrier_init(own_barriers + 8 * i, 1);
    barrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x < 128) {
    give_registers<24>();
    if (threadIdx.x == 0) fetch_all(p, ring, rank, cluster, clusters);
  } else {
    take_registers<240>();
    const int warp = threadIdx.x / 32 - 4;
    const Own own{blocks + 2 * warp * kBlockBytes, own_barriers + 8 * warp};
    multiply_all(p, ring, own, rank, cluster, clusters);
  }
  __syncwarp();
  cluster_sync();  // a block's memory must last as long as the other may write to it
#else
  __trap();
#endif
}

}  // namespace stablemask::ops::cuda::fused_gemm
