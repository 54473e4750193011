#pragma once

#include "src/ops/cuda/thin_gemm.cuh"

namespace stablemask::ops::cuda::thin_gemm {

/// The consumers' part of the work on a tile after the products: adds the sums of warps and blocks
/// and writes the result.
template <int kRows>
struct Epilogue {
  using L = Layout<kRows>;
  static constexpr int kOutputs = kRows * kTile;  ///< of a tile; output o: row o/8, column o%8
  static constexpr int kTurns = (kOutputs + kConsumers - 1) / kConsumers;

  const Block<kRows>& block;
  float* sums;
  float* gather;
  int owned;  ///< outputs that this block adds up and writes, from rank · owned on
  float residual[kTurns];
  uint32_t gather_parity = 0;

  __device__ Epilogue(const Block<kRows>& block_in, char* shared)
      : block(block_in),
        sums(reinterpret_cast<float*>(shared + L::kSums)),
        gather(reinterpret_cast<float*>(shared + L::kGather)),
        owned(kOutputs / block_in.plan.split) {}

  __device__ int64_t column_of(int tile, int output) const {
    return block.p.gated ? int64_t{tile} * (kTile / 2) + output % kTile / 2
                         : int64_t{tile} * kTile + output % kTile;
  }
  __device__ bool is_written(int tile, int output) const {
    return output / kTile < block.p.rows && column_of(tile, output) < block.p.columns;
  }
  __device__ int64_t place(int tile, int output) const {
    return output / kTile * block.p.columns + column_of(tile, output);
  }

  /// Loads the residual before it is needed.
  __device__ void begin(int tile) {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int local = threadIdx.x + i * kConsumers, output = block.rank * owned + local;
      const bool needed = block.p.residual != nullptr && local < owned && is_written(tile, output);
      residual[i] =
          needed ? to_float(static_cast<const bf16*>(block.p.residual)[place(tile, output)]) : 0.0f;
    }
  }

  __device__ void write(int tile, int output, float sum, float added) const {
    bf16* out = static_cast<bf16*>(block.p.out);
    if (!block.p.gated) {
      if (is_written(tile, output)) out[place(tile, output)] = from_float<bf16>(sum + added);
      return;
    }
    const float up = to_float(from_float<bf16>(__shfl_down_sync(0xffffffffu, sum, 1)));
    const float gate = to_float(from_float<bf16>(sum));
    if (output % 2 == 0 && is_written(tile, output)) {
      out[place(tile, output)] = from_float<bf16>(gate * sigmoid_as<bf16>(gate) * up);
    }
  }

  /// Sum of the block's warps.
  __device__ float warps(int turn, int output) const {
    const float* from = sums + turn * kWarps * kOutputs + output;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += from[w * kOutputs];
    return sum;
  }

  /// Sum of the cluster's blocks for an output of this one.
  __device__ float blocks(int turn, int local) const {
    const float* from = gather + turn * kOutputs + local;
    float sum = 0.0f;
    for (int rank = 0; rank < block.plan.split; ++rank) sum += from[rank * owned];
    return sum;
  }

  /// `turn` alternates between 0 and 1: two buffers, so that one barrier a tile is enough.
  template <int kSets>
  __device__ void run(int tile, int turn, const float (&products)[2][kSets][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* to = sums + (turn * kWarps + warp) * kOutputs + lane / 4 * kTile + lane % 4 * 2;
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const auto sum = [&](int i) { return products[0][set][i] + products[1][set][i]; };
      *reinterpret_cast<float2*>(to + set * 16 * kTile) = {sum(0), sum(1)};
      if (kRows > 8) {
        *reinterpret_cast<float2*>(to + (set * 16 + 8) * kTile) = {sum(2), sum(3)};
      }
    }
    consumers_sync();
    if (block.plan.split > 1) exchange(turn);
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int local = threadIdx.x + i * kConsumers, output = block.rank * owned + local;
      // Whole warps leave, because gate and up are in neighbouring lanes.
      const int warp_first = local - lane;
      if (warp_first >= owned || block.rank * owned + warp_first >= block.p.rows * kTile) continue;
      const bool mine_to_write = local < owned;
      float sum = 0.0f;
      if (mine_to_write) sum = block.plan.split == 1 ? warps(turn, output) : blocks(turn, local);
      write(tile, mine_to_write ? output : kOutputs, sum, residual[i]);
    }
  }

  /// Sends the block's sums to the blocks that own the outputs and waits for its own.
  __device__ void exchange(int turn) {
    const uint32_t barrier = block.gathered(turn);
    if (threadIdx.x == 0) {
      barrier_arrive_expect_bytes(barrier, static_cast<uint32_t>(block.plan.split * owned * 4));
    }
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int output = threadIdx.x + i * kConsumers;
      if (output >= kOutputs) continue;
      const int owner = output / owned;
      const uint32_t to =
          block.shared + L::kGather + 4 * (turn * kOutputs + block.rank * owned + output % owned);
      store_remote(remote(to, owner), warps(turn, output), remote(barrier, owner));
    }
    barrier_wait(barrier, gather_parity);
    if (turn == 1) gather_parity ^= 1;
  }
};

}  // namespace stablemask::ops::cuda::thin_gemm
