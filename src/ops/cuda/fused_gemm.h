#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// GEMMs with a fused epilogue for GPUs of compute capability 9.0, with the conventions of
/// launchers.h, bf16 only. Rows are contiguous, a multiple of 8 elements long and start on 16-byte
/// boundaries; otherwise the launch returns cudaErrorInvalidValue.

namespace stablemask::ops::cuda {

/// Whether the current device and this build can run them.
bool fused_gemm_runs_here();

/// gate_up = x · weightᵀ, out = silu(gate) · up.
struct SwigluProjection {
  const void* x;       ///< [rows, inner]
  const void* weight;  ///< [2·features, inner], gate first
  void* gate_up;       ///< [rows, 2·features]
  void* out;           ///< [rows, features]
  int64_t rows;
  int64_t features;
  int64_t inner;
};
cudaError_t launch(const SwigluProjection& p, cudaStream_t stream);

/// dgate_up = gradient with respect to gate_up of silu(gate) · up, whose own gradient is dy ·
/// weight.
struct SwigluProjectionBackward {
  const void* dy;       ///< [rows, inner]
  const void* weight;   ///< [inner, features]
  const void* gate_up;  ///< [rows, 2·features]
  void* dgate_up;       ///< [rows, 2·features]
  int64_t rows;
  int64_t features;
  int64_t inner;
};
cudaError_t launch(const SwigluProjectionBackward& p, cudaStream_t stream);

/// packed = x · weightᵀ, rotary embedding in all dims of the first `heads` heads.
struct RopeProjection {
  const void* x;             ///< [tokens, inner]
  const void* weight;        ///< [packed_heads·head_dim, inner]
  void* packed;              ///< [tokens, packed_heads, head_dim]
  const int64_t* positions;  ///< as in Rope
  const float* table;        ///< as in Rope, dims = head_dim
  int64_t tokens;
  int64_t inner;
  int64_t position_period;
  int64_t table_rows;
  int packed_heads;
  int head_dim;  ///< 64, 128 or 256
  int heads;
};
cudaError_t launch(const RopeProjection& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
