#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// GEMMs with a fused epilogue for GPUs of compute capability 9.0, with the conventions of
/// launchers.h, bf16 only. Rows are contiguous, a multiple of 8 elements long and start on 16-byte
/// boundaries; otherwise the launch returns cudaErrorInvalidValue.

namespace stablemask::ops::cuda {

/// Whether the current device and this build can run them.
bool fused_gemm_runs_here();

/// A product's factors. `stride`: elements from a row to the next, a multiple of 8.
struct Factors {
  const void* x;       ///< [rows, inner]
  const void* weight;  ///< [columns, inner], or [inner, columns] where the product is x · weight
  int64_t inner;       ///< of second factors: 0 if there are none
  int64_t x_stride;
  int64_t weight_stride;
};

/// gate_up = x · weightᵀ summed over the factors, out = silu(gate) · up.
struct SwigluProjection {
  Factors first, second;  ///< columns = 2·features, gate first
  void* gate_up;          ///< [rows, 2·features]
  void* out;              ///< [rows, features]
  int64_t rows;
  int64_t features;
};
cudaError_t launch(const SwigluProjection& p, cudaStream_t stream);

/// dgate_up = gradient with respect to gate_up of silu(gate) · up, whose own gradient is dy ·
/// weight summed over the factors.
struct SwigluProjectionBackward {
  Factors first, second;  ///< columns = features
  const void* gate_up;    ///< [rows, 2·features]
  void* dgate_up;         ///< [rows, 2·features]
  void* out;              ///< [rows, features] = silu(gate) · up, or null: not wanted
  int64_t rows;
  int64_t features;
};
cudaError_t launch(const SwigluProjectionBackward& p, cudaStream_t stream);

/// packed = x · weightᵀ summed over the factors, rotary embedding in all dims of the first `heads`
/// heads.
struct RopeProjection {
  Factors first, second;     ///< rows = tokens, columns = packed_heads·head_dim
  void* packed;              ///< [tokens, packed_heads, head_dim]
  const int64_t* positions;  ///< as in Rope
  const float* table;        ///< as in Rope, dims = head_dim
  int64_t tokens;
  int64_t position_period;
  int64_t table_rows;
  int packed_heads;
  int head_dim;  ///< 64, 128 or 256
  int heads;
};
cudaError_t launch(const RopeProjection& p, cudaStream_t stream);

/// out = x · weightᵀ or, with `plain`, x · weight, summed over the factors, plus `addend`.
struct SumProjection {
  Factors first, second;
  const void* addend;  ///< [rows, columns], or null: none
  void* out;           ///< [rows, columns]
  int64_t rows;
  int64_t columns;
  bool plain;  ///< not with an addend
};
cudaError_t launch(const SumProjection& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
