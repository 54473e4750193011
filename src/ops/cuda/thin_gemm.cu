// out [rows, columns] = y [rows, inner] · weight [columns, inner]ᵀ for few rows, where reading the
// weight takes the time.
//
// Parallelisation: persistent thread blocks, or clusters of up to 8 blocks that share `inner`, walk
// over tiles of 8 rows of the weight. Each block keeps its columns of y in shared memory. A
// producer warp copies the weight into a ring of stages, each up to 1,024 columns of a tile, with
// bulk copies. Eight consumer warps multiply every eighth group of 32 columns of a stage with
// mma.m16n8k16: y is the operand of 16 rows, the weight that of 8. The order of k inside an mma is
// free, so a lane takes 8 neighbouring elements of a row as its part of two of them, with one
// 16-byte load. The warps' sums are added in order, then those of the cluster's blocks.
//
// Memory traffic: the weight once; y once for each block, from L2. Launched with `overlapped`, the
// first stages are loaded while the kernel before still runs.
#include "src/ops/cuda/thin_gemm.h"

#include "src/ops/cuda/overlap.cuh"
#include "src/ops/cuda/thin_gemm_epilogue.cuh"

namespace stablemask::ops::cuda {
namespace {

using namespace thin_gemm;

#ifdef STABLEMASK_SM_90A
/// Producer warp: lane i copies row i of each tile.
template <int kRows>
__device__ void produce(const Block<kRows>& block) {
  const int lane = threadIdx.x % 32;
  Ring ring;
  for (int tile = block.first_tile; tile < block.plan.tiles; tile += block.tile_step) {
    const bf16* from = static_cast<const bf16*>(block.p.weight) + block.first;
    if (lane < kTile) from += block.weight_row(tile, lane) * block.p.inner;
    for (int done = 0; done < block.columns; done += block.plan.chunk) {
      const uint32_t bytes = 2 * min(block.plan.chunk, block.columns - done);
      barrier_wait(block.empty(ring.stage), ring.parity ^ 1);
      if (lane == 0) barrier_arrive_expect_bytes(block.full(ring.stage), kTile * bytes);
      __syncwarp();
      if (lane < kTile) {
        bulk_load(block.stage(ring.stage) + lane * block.plan.stage_stride, from + done, bytes,
                  block.full(ring.stage));
      }
      ring.next(block.plan.stages);
    }
  }
}

/// Copies the block's slice of x to shared memory.
template <int kRows>
__device__ void load_x(const Block<kRows>& block) {
  const int packs = block.columns / 8, all = static_cast<int>(block.p.rows) * packs;
  int row = 0, pack = threadIdx.x;
  for (int i = threadIdx.x; i < all; i += kConsumers, pack += kConsumers) {
    while (pack >= packs) {
      pack -= packs;
      ++row;
    }
    const bf16* from =
        static_cast<const bf16*>(block.p.x) + row * block.p.inner + block.first + pack * 8;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(block.y(row) + pack * 16),
                 "l"(from)
                 : "memory");
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  consumers_sync();
}

/// y = rms_norm(x) in shared memory, with the sums in the order of rms_norm.cu: thread i sums packs
/// i, i + 256, …, warps by halves, then in order.
template <typename W, int kRows>
__device__ void normalise(const Block<kRows>& block, char* shared) {
  float* parts = reinterpret_cast<float*>(shared + Layout<kRows>::kSums);  // [rows][kWarps]
  const int packs = block.columns / 8, rows = static_cast<int>(block.p.rows);
  const auto at = [&](int row, int pack) {
    return reinterpret_cast<bf16*>(shared + (block.y(row) - block.shared)) + pack * 8;
  };
  for (int row = 0; row < rows; ++row) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < packs; i += kConsumers) {
      const Pack<bf16, 8> x = load<8>(at(row, i));
#pragma unroll
      for (int j = 0; j < 8; ++j) squares += to_float(x.data[j]) * to_float(x.data[j]);
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) parts[row * kWarps + threadIdx.x / 32] = squares;
  }
  consumers_sync();
  for (int row = 0; row < rows; ++row) {
    float squares = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) squares += parts[row * kWarps + w];
    const float rstd = rsqrtf(squares / static_cast<float>(block.p.inner) + block.p.eps);
    for (int i = threadIdx.x; i < packs; i += kConsumers) {
      const Pack<bf16, 8> x = load<8>(at(row, i));
      const auto weight = load<8>(static_cast<const W*>(block.p.norm) + i * 8);
      float y[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        y[j] = to_float(x.data[j]) * rstd * to_float(weight.data[j]);
      }
      store<8>(at(row, i), pack<bf16>(y));
    }
  }
  consumers_sync();
}

/// Multiplies the warp's columns of one stage, which begins `done` columns into the slice.
template <int kRows, int kSets>
__device__ __forceinline__ void multiply_stage(const Block<kRows>& block, int stage, int done,
                                               float (&sums)[2][kSets][4]) {
  const int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
  const int count = min(block.plan.chunk, block.columns - done);
  const int last = static_cast<int>(block.p.rows) - 1;
  const uint32_t w_row = block.stage(stage) + group * block.plan.stage_stride;
  const uint4 zero = {0, 0, 0, 0};
#pragma unroll 4
  for (int step = threadIdx.x / 32; step * kStep < count; step += kWarps) {
    const int column = step * kStep + quarter * 8;
    const bool inside = column < count;
    const uint4 w = inside ? load_shared(w_row + 2 * column) : zero;
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const uint32_t at = 2 * (done + column);
      const int row = set * 16 + group;
      const uint4 x = inside ? load_shared(block.y(min(row, last)) + at) : zero;
      const uint4 below =
          kRows > 8 && inside ? load_shared(block.y(min(row + 8, last)) + at) : zero;
      multiply(sums[0][set], x.x, below.x, x.y, below.y, w.x, w.y);
      multiply(sums[1][set], x.z, below.z, x.w, below.w, w.z, w.w);
    }
  }
}

template <int kRows>
__device__ void consume(const Block<kRows>& block, char* shared) {
  constexpr int kSets = (kRows + 15) / 16;
  wait_for_previous();
  load_x(block);
  if (block.p.norm != nullptr) {
    block.p.norm_dtype == DType::kFloat32 ? normalise<float>(block, shared)
                                          : normalise<bf16>(block, shared);
  }
  Epilogue<kRows> epilogue(block, shared);
  Ring ring;
  int turn = 0;
  for (int tile = block.first_tile; tile < block.plan.tiles; tile += block.tile_step, turn ^= 1) {
    epilogue.begin(tile);
    float sums[2][kSets][4] = {};
    for (int done = 0; done < block.columns; done += block.plan.chunk) {
      barrier_wait(block.full(ring.stage), ring.parity);
      multiply_stage<kRows, kSets>(block, ring.stage, done, sums);
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(block.empty(ring.stage));
      ring.next(block.plan.stages);
    }
    epilogue.run(tile, turn, sums);
  }
}
#endif

template <int kRows>
__global__ void __launch_bounds__(kThreads)
    thin_gemm_kernel(const __grid_constant__ ThinProjection p, const __grid_constant__ Plan plan) {
#ifdef STABLEMASK_SM_90A
  extern __shared__ __align__(128) char shared[];
  const Block<kRows> block(p, plan, shared_address(shared));
  if (threadIdx.x == 0) {
    for (int i = 0; i < plan.stages; ++i) {
      barrier_init(block.full(i), 1);
      barrier_init(block.empty(i), kWarps);
    }
    for (int i = 0; i < 2; ++i) barrier_init(block.gathered(i), 1);
    barrier_init_fence();
  }
  let_next_start();
  // Other blocks of a cluster write to this one's barriers.
  plan.split > 1 ? cluster_sync() : __syncthreads();
  if (threadIdx.x >= kConsumers) {
    produce(block);
  } else {
    consume(block, shared);
  }
#endif
}

/// Rows of the kernel that serves `rows`.
int padded_rows(int64_t rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64; }

/// Blocks of a cluster: a function of the padded number of rows, so that a row's bits are, too; 0
/// where x does not fit.
int split_of(int padded, int64_t inner) {
  for (int split = 1; split <= kMaxSplit; split *= 2) {
    const auto slice = static_cast<int>(ceil_div<int64_t>(inner, 8 * split) * 8);
    const int64_t bytes = int64_t{padded} * row_stride(slice);
    if (bytes <= kGoodRowsBytes || (split == kMaxSplit && bytes <= kGoodSharedBytes)) return split;
  }
  return 0;
}

template <int kRows>
Plan plan_of(const ThinProjection& p) {
  using L = Layout<kRows>;
  Plan plan{};
  plan.split = split_of(kRows, p.inner);
  plan.slice = static_cast<int>(ceil_div<int64_t>(p.inner, 8 * plan.split) * 8);
  plan.chunk = std::min(kChunk, plan.slice);
  plan.x_stride = row_stride(plan.slice);
  plan.stage_stride = row_stride(plan.chunk);
  plan.tiles = static_cast<int>(ceil_div<int64_t>(p.columns, p.gated ? kTile / 2 : kTile));
  const uint32_t before = L::stages(plan, static_cast<int>(p.rows));
  const uint32_t room = kGoodSharedBytes > before ? kGoodSharedBytes - before : 0;
  plan.stages = std::clamp(static_cast<int>(room / (kTile * plan.stage_stride)), 3, kMaxStages);
  return plan;
}

template <int kRows>
cudaError_t launch_rows(const ThinProjection& p, cudaStream_t stream) {
  const Plan plan = plan_of<kRows>(p);
  const uint32_t bytes = Layout<kRows>::bytes(plan, static_cast<int>(p.rows));
  if (bytes > kMaxSharedBytes) return cudaErrorInvalidValue;
  int multiprocessors = 0;
  cudaError_t error = device_attribute(cudaDevAttrMultiProcessorCount, &multiprocessors);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(thin_gemm_kernel<kRows>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxSharedBytes);
  }
  if (error != cudaSuccess) return error;
  // Clusters lie in one of the GPU's groups of 16 or 18 multiprocessors.
  const int used = plan.split > 2 ? multiprocessors / 16 * 16 : multiprocessors;
  const int clusters = std::min(std::max(1, used / plan.split), plan.tiles);
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.attrs = attributes;
  if (plan.split > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(plan.split), 1, 1};
  }
  if (p.overlapped) attributes[config.numAttrs++] = overlapped_launch();
  config.gridDim = dim3(static_cast<unsigned>(clusters * plan.split));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, thin_gemm_kernel<kRows>, p, plan);
}

}  // namespace

bool thin_gemm_serves(int64_t rows, int64_t inner, bool normed) {
  if (rows < 1 || rows > ThinProjection::kMaxRows || inner < 8 || inner % 8 != 0) return false;
  const int split = split_of(padded_rows(rows), inner);
  return normed ? rows <= 16 && split == 1 : split > 0;
}

cudaError_t launch(const ThinProjection& p, cudaStream_t stream) {
  if (!thin_gemm_serves(p.rows, p.inner, p.norm != nullptr) || !aligned(p.x, p.norm, p.weight) ||
      (p.gated && p.residual != nullptr)) {
    return cudaErrorInvalidValue;
  }
  switch (padded_rows(p.rows)) {
    case 8:
      return launch_rows<8>(p, stream);
    case 16:
      return launch_rows<16>(p, stream);
    case 32:
      return launch_rows<32>(p, stream);
    default:
      return launch_rows<64>(p, stream);
  }
}

}  // namespace stablemask::ops::cuda
