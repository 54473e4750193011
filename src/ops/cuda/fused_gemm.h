#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// GEMMs with a fused epilogue for GPUs of compute capability 9.0, with the conventions of
/// launchers.h, of bf16 or e4m3 factors. Rows are contiguous, a multiple of 16 bytes long and start
/// on 16-byte boundaries; otherwise the launch returns cudaErrorInvalidValue.

namespace stablemask::ops::cuda {

/// Whether the current device and this build can run them.
bool fused_gemm_runs_here();

/// A product's factors. `stride`: elements from a row to the next, a multiple of 16 bytes.
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

/// The same of e4m3 factors, whose sums stay in the tensor cores; silu(gate) · up as e4m3.
struct SwigluFp8Projection {
  Factors factors;         ///< e4m3, columns = 2·features, gate first
  const float* x_inverse;  ///< one number each, by which the factors are multiplied
  const float* weight_inverse;
  void* gate_up;       ///< bf16 [rows, 2·features]
  void* values;        ///< e4m3 [rows, features]
  void* twin;          ///< e4m3 [features, rows], the transposed values
  const float* scale;  ///< of the values, one number
  float* maximum;      ///< one number, raised to the largest |silu(gate) · up|
  int64_t rows;
  int64_t features;
};
cudaError_t launch(const SwigluFp8Projection& p, cudaStream_t stream);

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
  const float* x_inverse;  ///< null: bf16 factors; else the first, alone, are e4m3, times these
  const float* weight_inverse;
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

/// out = factor·x·xᵀ + diagonal·I of each matrix; symmetric to the bit.
struct SymmetricProduct {
  const void* x;  ///< [matrices, rows, inner]
  void* out;      ///< [matrices, rows, rows]
  int64_t matrices;
  int64_t rows;  ///< of a matrix
  int64_t inner;
  float factor;
  float diagonal;
};
/// Whether this shape can be launched on the current device.
bool symmetric_product_runs_here(int64_t rows, int64_t inner);
cudaError_t launch(const SymmetricProduct& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
