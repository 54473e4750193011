#pragma once

#include <cuda.h>

#include "src/ops/cuda/common.cuh"
#include "src/ops/cuda/hopper.cuh"
#include "src/ops/cuda/hopper_products.cuh"

/// What the tail of a matrix product (fused_gemm.cuh) works with: a warp's share of a finished tile
/// in its registers, and two blocks of shared memory through which the warp's results leave.

namespace stablemask::ops::cuda::fused_gemm {

using namespace hopper;

constexpr int kTileRows = 128;  // of a block
constexpr int kTileColumns = 256;
constexpr int kWarpRows = 16;
constexpr uint32_t kBlockBytes = kWarpRows * 64 * 2;  // what a warp moves at once: 64 columns

struct Place {
  int row, column;
};

/// A warp's 16 rows of a finished tile, bf16 pairs: lane l holds of rows l/4 and l/4 + 8 the
/// columns 8j + 2(l%4) and the one after it in pairs[2j] and pairs[2j + 1].
struct Finished {
  uint32_t pairs[64];
};

/// What a warp has to itself for its tail: two blocks of shared memory and a barrier.
struct Own {
  uint32_t blocks, barrier;
  __device__ uint32_t block(int i) const { return blocks + i * kBlockBytes; }
};

__device__ __forceinline__ bool first_lane() { return threadIdx.x % 32 == 0; }

/// Where this lane's row of the fragments of columns 8j … 8j + 15 lies in a block, swizzled.
__device__ __forceinline__ uint32_t fragment(uint32_t block, int j) {
  const uint32_t lane = threadIdx.x % 32, row = lane % 16;
  return block + row * 128 + (((j + lane / 16) ^ (row & 7)) << 4);
}

/// Two numbers in one register. The compiler sees no halves in it: it would keep them apart, in
/// two.
__device__ __forceinline__ uint32_t pack2(float x, float y) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  return pair;
}
__device__ __forceinline__ float2 unpack2(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

/// Waits until at most `pending` of the warp's sends still read its blocks.
template <int pending>
__device__ __forceinline__ void await_blocks() {
  if (first_lane()) await_writes_read<pending>();
  __syncwarp();
}

/// 64 columns, pair(0) … pair(15), to a block.
template <typename Pair>
__device__ __forceinline__ void fill_block(uint32_t block, const Pair& pair) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    store_fragments(fragment(block, j),
                    {pair(2 * j), pair(2 * j + 1), pair(2 * j + 2), pair(2 * j + 3)});
  }
}

/// send(): the first lane's write_tile of the blocks that the warp has filled.
template <typename Send>
__device__ __forceinline__ void send_blocks(const Send& send) {
  fence_for_copies();
  __syncwarp();
  if (first_lane()) {
    send();
    commit_writes();
  }
}

}  // namespace stablemask::ops::cuda::fused_gemm
