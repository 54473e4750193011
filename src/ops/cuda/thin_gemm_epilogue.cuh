#pragma once

#include "src/ops/cuda/thin_gemm.cuh"

namespace stablemask::ops::cuda::thin_gemm {

/// The consumers' part of the work on a tile after the products: adds the warps' sums and writes
/// the result.
template <typename T>
struct Epilogue {
  using L = Layout<T>;
  static constexpr int kOutputs = T::kOutputs;
  static constexpr int kTurns = (kOutputs + kConsumers - 1) / kConsumers;

  const Block<T>& block;
  float* sums;
  float residual[kTurns];

  __device__ Epilogue(const Block<T>& block_in, char* shared)
      : block(block_in), sums(reinterpret_cast<float*>(shared + L::kSums)) {}

  __device__ static int row_of(int output) { return output / 8 % T::kRows; }
  __device__ int64_t column_of(int tile, int output) const {
    const int within = output / 8 / T::kRows * 8 + output % 8;
    return block.p.gated ? int64_t{tile} * (T::kColumns / 2) + within / 2
                         : int64_t{tile} * T::kColumns + within;
  }
  __device__ bool is_written(int tile, int output) const {
    return output < kOutputs && row_of(output) < block.rows &&
           column_of(tile, output) < block.p.columns;
  }
  __device__ int64_t place(int tile, int output) const {
    return row_of(output) * block.p.columns + column_of(tile, output);
  }

  /// Loads the residual before it is needed.
  __device__ void begin(int tile) {
    const bf16* from = static_cast<const bf16*>(block.p.residual);
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int output = threadIdx.x + i * kConsumers;
      const bool needed = from != nullptr && is_written(tile, output);
      residual[i] = needed ? to_float(from[place(tile, output)]) : 0.0f;
    }
  }

  /// `turn` alternates between 0 and 1: two buffers, so that one barrier a tile is enough.
  __device__ void run(int tile, int turn, const float (&products)[2][T::kSets][T::kParts][4]) {
    const int lane = threadIdx.x % 32;
    float* to = sums + (turn * kWarps + threadIdx.x / 32) * kOutputs + lane / 4 * 8 + lane % 4 * 2;
#pragma unroll
    for (int set = 0; set < T::kSets; ++set) {
#pragma unroll
      for (int part = 0; part < T::kParts; ++part) {
        const auto sum = [&](int i) {
          return products[0][set][part][i] + products[1][set][part][i];
        };
        float* row = to + (part * T::kRows + set * 16) * 8;
        *reinterpret_cast<float2*>(row) = {sum(0), sum(1)};
        if (T::kRows > 8) *reinterpret_cast<float2*>(row + 64) = {sum(2), sum(3)};
      }
    }
    consumers_sync();
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int output = threadIdx.x + i * kConsumers;
      // The same for the whole warp, which holds 4 rows.
      if (output >= kOutputs || row_of(output - lane) >= block.rows) continue;
      const float* from = sums + turn * kWarps * kOutputs + output;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += from[w * kOutputs];
      write(tile, output, sum, residual[i]);
    }
  }

  /// All lanes of a warp must call it: gate and up are in neighbouring lanes.
  __device__ void write(int tile, int output, float sum, float added) const {
    bf16* out = static_cast<bf16*>(block.p.out);
    const bool valid = is_written(tile, output);
    if (!block.p.gated) {
      if (valid) out[place(tile, output)] = from_float<bf16>(sum + added);
      return;
    }
    const float up = to_float(from_float<bf16>(__shfl_down_sync(0xffffffffu, sum, 1)));
    const float gate = to_float(from_float<bf16>(sum));
    if (valid && output % 2 == 0) {
      out[place(tile, output)] = from_float<bf16>(gate * sigmoid_as<bf16>(gate) * up);
    }
  }
};

}  // namespace stablemask::ops::cuda::thin_gemm
