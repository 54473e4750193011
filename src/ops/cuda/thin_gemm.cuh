#pragma once

#include "src/ops/cuda/common.cuh"
#include "src/ops/cuda/hopper.cuh"
#include "src/ops/cuda/thin_gemm.h"

/// Building blocks of thin_gemm.cu: how the work and the shared memory are divided, and the
/// instructions that it needs beside those of hopper.cuh.

namespace stablemask::ops::cuda::thin_gemm {

constexpr int kWarps = 8;  // consumers
constexpr int kConsumers = 32 * kWarps;
constexpr int kThreads = kConsumers + 32;
constexpr int kStep = 32;     // columns of x and weight that a warp multiplies at a time
constexpr int kChunk = 1024;  // columns of a stage, at most; a multiple of kWarps steps
constexpr int kMaxStages = 8;
constexpr uint32_t kMaxSharedBytes = 227 << 10;
/// Two kernels find room in a multiprocessor if each stays below this, so that they can overlap.
constexpr uint32_t kGoodSharedBytes = 100 << 10;
constexpr uint32_t kMaxRowsBytes = 136 << 10;  // of y

/// Shape of a tile: kRows rows of x (8, 16 or 32) and 8·kParts rows of the weight.
template <int kRows_, int kParts_>
struct Tile {
  static constexpr int kRows = kRows_, kParts = kParts_;
  static constexpr int kColumns = 8 * kParts;      ///< of the product
  static constexpr int kSets = (kRows + 15) / 16;  ///< of 16 rows
  /// Output o: column o%8 of row o/8%kRows in part o/8/kRows.
  static constexpr int kOutputs = kRows * kColumns;
};

/// How the work is divided.
struct Plan {
  int chunk;   ///< columns of a stage
  int stages;  ///< in shared memory
  int tiles;
  uint32_t x_stride, stage_stride;  ///< bytes of a row in shared memory
};

/// Rows whose starts differ by 64 bytes modulo 128: the 8 lanes of a quarter warp, on 2 rows and 4
/// packs of 16 bytes, are free of bank conflicts.
constexpr uint32_t row_stride(int64_t columns) {
  return static_cast<uint32_t>(ceil_div<int64_t>(2 * columns, 128) * 128 + 64);
}

/// Shared memory in bytes from its start: barriers, sums, y, stages.
template <typename T>
struct Layout {
  static constexpr uint32_t kFull = 0, kEmpty = 8 * kMaxStages;
  static constexpr uint32_t kSums = 128;  ///< fp32 [2][kWarps][kOutputs]
  static constexpr uint32_t kY = kSums + 2 * kWarps * T::kOutputs * 4;

  __host__ __device__ static uint32_t stages(const Plan& plan, int rows) {
    return kY + (rows * plan.x_stride + 127) / 128 * 128;
  }
  __host__ __device__ static uint32_t bytes(const Plan& plan, int rows) {
    return stages(plan, rows) + plan.stages * T::kColumns * plan.stage_stride;
  }
};

using namespace hopper;

__device__ __forceinline__ void consumers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}

__device__ __forceinline__ void bulk_load(uint32_t to, const void* from, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ uint4 load_shared(uint32_t from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from));
  return x;
}

/// sums += a · b, a [16, 16] row-major and b [16, 8] in fragments of mma.m16n8k16.
__device__ __forceinline__ void multiply(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// A block's position in the ring of stages.
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// What the warps of a block have in common.
template <typename T>
struct Block {
  using L = Layout<T>;
  const ThinProjection& p;
  const Plan& plan;
  uint32_t shared, stages;
  int rows, inner;

  __device__ Block(const ThinProjection& p_in, const Plan& plan_in, uint32_t shared_in)
      : p(p_in),
        plan(plan_in),
        shared(shared_in),
        rows(static_cast<int>(p_in.rows)),
        inner(static_cast<int>(p_in.inner)) {
    stages = shared + L::stages(plan, rows);
  }

  __device__ uint32_t full(int stage) const { return shared + L::kFull + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return shared + L::kEmpty + 8 * stage; }
  __device__ uint32_t stage(int stage) const {
    return stages + stage * T::kColumns * plan.stage_stride;
  }
  __device__ uint32_t y(int row) const { return shared + L::kY + row * plan.x_stride; }

  /// Row of the weight that is row `i` of the tile; rows after the last are a repetition.
  /// With `gated` gate and up alternate.
  __device__ int64_t weight_row(int tile, int i) const {
    if (!p.gated) return min(int64_t{tile} * T::kColumns + i, p.columns - 1);
    return min(int64_t{tile} * (T::kColumns / 2) + i / 2, p.columns - 1) + (i % 2) * p.columns;
  }
};

}  // namespace stablemask::ops::cuda::thin_gemm
