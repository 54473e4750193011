#pragma once

#include <cuda.h>

#include "src/ops/cuda/common.cuh"
#include "src/ops/cuda/hopper.cuh"
#include "src/ops/cuda/hopper_gemm.cuh"

/// Building blocks of the epilogues of fused_gemm.cuh: a warp's part of a finished tile in
/// registers, and two staging buffers in shared memory from which TMA stores the results.

namespace stablemask::ops::cuda::fused_gemm {

using namespace hopper;

constexpr int kTileRows = 128;  // per thread block
constexpr int kTileColumns = 256;
constexpr int kWarpRows = 16;
/// A staging buffer: 64 columns of a warp's rows.
constexpr uint32_t kBufferBytes = kWarpRows * 64 * 2;

/// First row and column of a tile in the output matrix.
struct TileOrigin {
  int row, column;
};

/// A warp's 16 rows of a result tile, as bf16 pairs: lane l holds columns 8j + 2(l%4)
/// and the one after it, of row l/4 in pairs[2j] and of row l/4 + 8 in pairs[2j + 1].
struct ResultTile {
  uint32_t pairs[64];
};

/// Shared memory of one warp's epilogue: two staging buffers and a barrier for loads into them.
struct WarpScratch {
  uint32_t buffers, barrier;
  __device__ uint32_t buffer(int i) const { return buffers + i * kBufferBytes; }
};

__device__ __forceinline__ bool first_lane() { return threadIdx.x % 32 == 0; }

/// Address of this lane's row of the fragments of columns 8j … 8j + 15 in a buffer (128-byte
/// swizzle).
__device__ __forceinline__ uint32_t fragment(uint32_t buffer, int j) {
  const uint32_t lane = threadIdx.x % 32, row = lane % 16;
  return buffer + row * 128 + (((j + lane / 16) ^ (row & 7)) << 4);
}

/// Rounds two numbers to bf16 in one register. As an opaque integer: typed as a pair, the compiler
/// splits it over two registers.
__device__ __forceinline__ uint32_t pack2(float x, float y) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  return pair;
}
__device__ __forceinline__ float2 unpack2(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

/// Waits until at most `pending` of the warp's TMA stores still read its buffers.
template <int pending>
__device__ __forceinline__ void wait_for_stores() {
  if (first_lane()) tma_store_wait_read<pending>();
  __syncwarp();
}

/// Writes 64 columns, pair(0) … pair(15), to a buffer.
template <typename Pair>
__device__ __forceinline__ void fill_buffer(uint32_t buffer, const Pair& pair) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    store_fragments(fragment(buffer, j),
                    {pair(2 * j), pair(2 * j + 1), pair(2 * j + 2), pair(2 * j + 3)});
  }
}

/// Writes FP8 numbers of columns 8j … 8j + 7 of a warp's 16 rows to rows of 64 bytes (64-byte
/// swizzle). `numbers`: as the pairs of ResultTile, row l/4 in the lower half.
__device__ __forceinline__ void store_fp8_fragment(uint32_t buffer, int j, uint32_t numbers) {
  const uint32_t lane = threadIdx.x % 32, odd = lane % 2;
  const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? numbers & 0xffff : numbers >> 16, 1);
  const uint32_t word = odd ? other | (numbers & 0xffff0000) : (numbers & 0xffff) | other << 16;
  const uint32_t row = lane / 4 + 8 * odd, column = 8 * j + lane % 4 / 2 * 4;
  const uint32_t chunk = column / 16 ^ (row / 2 & 3);
  store_word(buffer + row * 64 + chunk * 16 + column % 16, word);
}

/// Writes the same numbers transposed, to rows of 16 bytes: four lanes of two columns each exchange
/// bytes until every lane has four rows of one column.
__device__ __forceinline__ void store_fp8_transposed(uint32_t buffer, int j, uint32_t numbers) {
  const uint32_t lane = threadIdx.x % 32, row = lane / 4;
  const bool odd = row % 2, upper = row / 2 % 2;
  const uint32_t half = __shfl_xor_sync(0xffffffffu, upper ? numbers & 0xffff : numbers >> 16, 8);
  // Two columns of two rows: row and row + 2, or 8 rows below row − 2 and row.
  const uint32_t pairs = upper ? half | (numbers & 0xffff0000) : (numbers & 0xffff) | half << 16;
  const uint32_t other =
      __shfl_xor_sync(0xffffffffu, __byte_perm(pairs, 0, odd ? 0x4420 : 0x4431), 4);
  const uint32_t word = __byte_perm(pairs, other, odd ? 0x3514 : 0x5240);
  const uint32_t column = 8 * j + lane % 4 * 2 + odd;
  store_word(buffer + column * 16 + 8 * upper + row / 4 * 4, word);
}

/// Runs store(), which issues tma_store for the buffers that the warp has filled, on the first
/// lane.
template <typename Store>
__device__ __forceinline__ void store_buffers(const Store& store) {
  fence_proxy_async();
  __syncwarp();
  if (first_lane()) {
    store();
    tma_store_commit();
  }
}

/// Calls run<wanted>; a slice is a template argument so that register indices are constants.
template <int slice = 0, typename Epilogue, typename... Arguments>
__device__ __forceinline__ void run_slice(const Epilogue& epilogue, int wanted,
                                          Arguments&... arguments) {
  if (wanted == slice) {
    epilogue.template run<slice>(arguments...);
  } else if constexpr (slice + 1 < Epilogue::kSlices) {
    run_slice<slice + 1>(epilogue, wanted, arguments...);
  }
}

}  // namespace stablemask::ops::cuda::fused_gemm
