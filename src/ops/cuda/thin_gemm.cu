// out [rows, columns] = y [rows, inner] · weight [columns, inner]ᵀ for few rows, where reading the
// weight takes the time.
//
// Parallelisation: persistent thread blocks, each with y in shared memory, walk over tiles of 8 or
// 16 rows of the weight. A producer warp copies the weight into a ring of stages, each up to 1,024
// columns of a tile, with bulk copies. Eight consumer warps multiply every eighth group of 32
// columns with mma.m16n8k16: y is the operand of 16 rows, the weight that of 8. The order of k
// inside an mma is free, so a lane takes 8 neighbouring elements of a row as its part of two of
// them, with one 16-byte load. The warps' sums are added in order. The order of a sum depends on
// `inner` alone.
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
template <typename T>
__device__ void produce(const Block<T>& block) {
  const int lane = threadIdx.x % 32;
  Ring ring;
  for (int tile = blockIdx.x; tile < block.plan.tiles; tile += gridDim.x) {
    const bf16* from = static_cast<const bf16*>(block.p.weight);
    if (lane < T::kColumns) from += block.weight_row(tile, lane) * block.p.inner;
    for (int done = 0; done < block.inner; done += block.plan.chunk) {
      const uint32_t bytes = 2 * min(block.plan.chunk, block.inner - done);
      barrier_wait(block.empty(ring.stage), ring.parity ^ 1);
      if (lane == 0) barrier_arrive_expect_bytes(block.full(ring.stage), T::kColumns * bytes);
      __syncwarp();
      if (lane < T::kColumns) {
        bulk_load(block.stage(ring.stage) + lane * block.plan.stage_stride, from + done, bytes,
                  block.full(ring.stage));
      }
      ring.next(block.plan.stages);
    }
  }
}

/// Copies x to shared memory.
template <typename T>
__device__ void load_x(const Block<T>& block) {
  const int packs = block.inner / 8;
  int row = 0, pack = threadIdx.x;
  while (true) {
    while (pack >= packs && row < block.rows) {
      pack -= packs;
      ++row;
    }
    if (row >= block.rows) break;
    const bf16* from = static_cast<const bf16*>(block.p.x) + row * block.p.inner + pack * 8;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(block.y(row) + pack * 16),
                 "l"(from)
                 : "memory");
    pack += kConsumers;
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  consumers_sync();
}

/// RMSNorm of the rows of x in shared memory, with the sums in the order of rms_norm.cu, which has
/// up to 256 threads a row: thread i sums packs i, i + 256, …; then warps by halves, then the warps
/// in order. A single row is divided between the warps; of several rows each warp takes whole ones.
template <typename W, typename T>
struct Norm {
  const Block<T>& block;
  char* shared;
  int packs;
  Pack<W, 8> first = {};  ///< of the weight, loaded before x is there

  __device__ Norm(const Block<T>& block_in, char* shared_in)
      : block(block_in), shared(shared_in), packs(block_in.inner / 8) {
    const int thread = threadIdx.x;
    if (thread < packs) first = weight(thread);
  }

  __device__ Pack<W, 8> weight(int pack) const {
    return load<8>(static_cast<const W*>(block.p.norm) + pack * 8);
  }
  __device__ bf16* at(int row, int pack) const {
    return reinterpret_cast<bf16*>(shared + (block.y(row) - block.shared)) + pack * 8;
  }
  __device__ void add_squares(int row, int pack, float& squares) const {
    const Pack<bf16, 8> x = load<8>(at(row, pack));
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += to_float(x.data[j]) * to_float(x.data[j]);
  }
  __device__ float rstd(const float (&squares)[kWarps]) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += squares[w];
    return rsqrtf(sum / static_cast<float>(block.inner) + block.p.eps);
  }
  __device__ void scale(int row, int pack, float rstd, const Pack<W, 8>& factor) const {
    const Pack<bf16, 8> x = load<8>(at(row, pack));
    float y[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) y[j] = to_float(x.data[j]) * rstd * to_float(factor.data[j]);
    store<8>(at(row, pack), cuda::pack<bf16>(y));
  }

  __device__ void single_row() const {
    float* parts = reinterpret_cast<float*>(shared + Layout<T>::kSums);
    float squares = 0.0f;
    for (int i = threadIdx.x; i < packs; i += kConsumers) add_squares(0, i, squares);
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
    consumers_sync();
    float all[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all[w] = parts[w];
    const float factor = rstd(all);
    for (int i = threadIdx.x; i < packs; i += kConsumers) {
      scale(0, i, factor, i < kConsumers ? first : weight(i));
    }
  }

  __device__ void whole_row(int row) const {
    const int lane = threadIdx.x % 32;
    float squares[kWarps] = {};  // of each warp of rms_norm.cu
    for (int base = lane; base < packs; base += kConsumers) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (base + 32 * w < packs) add_squares(row, base + 32 * w, squares[w]);
      }
    }
#pragma unroll
    for (int w = 0; w < kWarps; ++w) squares[w] = warp_sum(squares[w]);
    const float factor = rstd(squares);
#pragma unroll 4
    for (int i = lane; i < packs; i += 32) scale(row, i, factor, weight(i));
  }

  __device__ void run() const {
    if (block.rows == 1) {
      single_row();
    } else {
      for (int row = threadIdx.x / 32; row < block.rows; row += kWarps) whole_row(row);
    }
    consumers_sync();
  }
};

/// Brings y to shared memory, when the kernels before this one have ended.
template <typename T>
__device__ __forceinline__ void prepare(const Block<T>& block, char* shared) {
  const auto normed = [&](auto weight) {
    const Norm<decltype(weight), T> norm(block, shared);
    wait_for_previous();
    load_x(block);
    norm.run();
  };
  if (block.p.norm == nullptr) {
    wait_for_previous();
    load_x(block);
  } else if (block.p.norm_dtype == DType::kFloat32) {
    normed(float{});
  } else {
    normed(bf16{});
  }
}

/// Multiplies the warp's columns of one stage, whose first column is `done`.
template <typename T>
__device__ __forceinline__ void multiply_stage(const Block<T>& block, int stage, int done,
                                               float (&sums)[2][T::kSets][T::kParts][4]) {
  const int lane = threadIdx.x % 32, quarter = lane % 4;
  const int count = min(block.plan.chunk, block.inner - done);
  const uint32_t w_row = block.stage(stage) + lane / 4 * block.plan.stage_stride;
  const uint4 zero = {0, 0, 0, 0};
#pragma unroll 4
  for (int step = threadIdx.x / 32; step * kStep < count; step += kWarps) {
    const int column = step * kStep + quarter * 8;
    const bool inside = column < count;
    const auto row_of_x = [&](int row) {
      const uint32_t from = block.y(min(row, block.rows - 1)) + 2 * (done + column);
      return inside ? load_shared(from) : zero;
    };
    uint4 w[T::kParts];
#pragma unroll
    for (int part = 0; part < T::kParts; ++part) {
      const uint32_t from = w_row + part * 8 * block.plan.stage_stride + 2 * column;
      w[part] = inside ? load_shared(from) : zero;
    }
#pragma unroll
    for (int set = 0; set < T::kSets; ++set) {
      const int row = lane / 4 + set * 16;
      const uint4 x = row_of_x(row), below = T::kRows > 8 ? row_of_x(row + 8) : zero;
#pragma unroll
      for (int part = 0; part < T::kParts; ++part) {
        multiply(sums[0][set][part], x.x, below.x, x.y, below.y, w[part].x, w[part].y);
        multiply(sums[1][set][part], x.z, below.z, x.w, below.w, w[part].z, w[part].w);
      }
    }
  }
}

template <typename T>
__device__ void consume(const Block<T>& block, char* shared) {
  prepare(block, shared);
  Epilogue<T> epilogue(block, shared);
  Ring ring;
  int turn = 0;
  for (int tile = blockIdx.x; tile < block.plan.tiles; tile += gridDim.x, turn ^= 1) {
    epilogue.begin(tile);
    float sums[2][T::kSets][T::kParts][4] = {};
    for (int done = 0; done < block.inner; done += block.plan.chunk) {
      barrier_wait(block.full(ring.stage), ring.parity);
      multiply_stage(block, ring.stage, done, sums);
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(block.empty(ring.stage));
      ring.next(block.plan.stages);
    }
    epilogue.run(tile, turn, sums);
  }
}
#endif

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    thin_gemm_kernel(const __grid_constant__ ThinProjection p, const __grid_constant__ Plan plan) {
#ifdef STABLEMASK_SM_90A
  extern __shared__ __align__(128) char shared[];
  const Block<T> block(p, plan, shared_address(shared));
  if (threadIdx.x == 0) {
    for (int i = 0; i < plan.stages; ++i) {
      barrier_init(block.full(i), 1);
      barrier_init(block.empty(i), kWarps);
    }
    barrier_init_fence();
  }
  let_next_start();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    produce(block);
  } else {
    consume(block, shared);
  }
#endif
}

/// Rows of the tile that serves `rows`.
int padded_rows(int64_t rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : 32; }

template <typename T>
Plan plan_of(const ThinProjection& p, int blocks) {
  using L = Layout<T>;
  Plan plan{};
  plan.chunk = static_cast<int>(std::min<int64_t>(kChunk / T::kParts, p.inner));
  plan.x_stride = row_stride(p.inner);
  plan.stage_stride = row_stride(plan.chunk);
  plan.tiles = static_cast<int>(ceil_div<int64_t>((p.gated ? 2 : 1) * p.columns, T::kColumns));
  const uint32_t before = L::stages(plan, static_cast<int>(p.rows));
  const uint32_t room = kGoodSharedBytes > before ? kGoodSharedBytes - before : 0;
  const int fitting = static_cast<int>(room / (T::kColumns * plan.stage_stride));
  const int64_t loads = ceil_div<int64_t>(p.inner, plan.chunk) * ceil_div(plan.tiles, blocks);
  plan.stages = static_cast<int>(std::min<int64_t>(std::clamp(fitting, 3, kMaxStages), loads));
  return plan;
}

template <typename T>
cudaError_t launch_tiles(const ThinProjection& p, int blocks, cudaStream_t stream) {
  const Plan plan = plan_of<T>(p, blocks);
  const uint32_t bytes = Layout<T>::bytes(plan, static_cast<int>(p.rows));
  if (bytes > kMaxSharedBytes) return cudaErrorInvalidValue;
  const cudaError_t error = cudaFuncSetAttribute(
      thin_gemm_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxSharedBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlapped = overlapped_launch();
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, plan.tiles)));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &overlapped;
  config.numAttrs = p.overlapped ? 1 : 0;
  return cudaLaunchKernelEx(&config, thin_gemm_kernel<T>, p, plan);
}

template <int kRows>
cudaError_t launch_rows(const ThinProjection& p, cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t error = device_attribute(cudaDevAttrMultiProcessorCount, &blocks);
  if (error != cudaSuccess) return error;
  // Of a short row a tile's sums take longer than its load: wide tiles, where a block has several.
  constexpr int64_t kShortRow = 512;
  const int64_t eights = ceil_div<int64_t>((p.gated ? 2 : 1) * p.columns, 8);
  return p.inner <= kShortRow && eights > blocks ? launch_tiles<Tile<kRows, 2>>(p, blocks, stream)
                                                 : launch_tiles<Tile<kRows, 1>>(p, blocks, stream);
}

}  // namespace

bool thin_gemm_serves(int64_t rows, int64_t inner) {
  return rows >= 1 && rows <= ThinProjection::kMaxRows && inner >= 8 && inner % 8 == 0 &&
         inner <= ThinProjection::kMaxInner &&
         int64_t{padded_rows(rows)} * row_stride(inner) <= kMaxRowsBytes;
}

cudaError_t launch(const ThinProjection& p, cudaStream_t stream) {
  if (!thin_gemm_serves(p.rows, p.inner) || !aligned(p.x, p.norm, p.weight) ||
      (p.gated && p.residual != nullptr)) {
    return cudaErrorInvalidValue;
  }
  switch (padded_rows(p.rows)) {
    case 8:
      return launch_rows<8>(p, stream);
    case 16:
      return launch_rows<16>(p, stream);
    default:
      return launch_rows<32>(p, stream);
  }
}

}  // namespace stablemask::ops::cuda
