#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "src/ops/cuda/launchers.h"

/// Kernels that write FP8 (stablemask/ops/fp8.h), in the way of launchers.h. Rows, columns and
/// features are multiples of 16, matrices on 16-byte boundaries.
namespace stablemask::ops::cuda {

/// Where quantised numbers go.
struct QuantizeTo {
  void* values;        ///< [rows, columns]; null: not written
  void* twin;          ///< [columns, rows]; null: not written
  const float* scale;  ///< one number
  float* maximum;      ///< one number, raised to max |x|
  bool e5m2;           ///< else e4m3
};

struct Quantize {
  QuantizeTo to;
  const void* x;  ///< [rows, columns]
  int64_t rows;
  int64_t columns;
  DType dtype;
};
cudaError_t launch(const Quantize& p, cudaStream_t stream);

/// x · rstd · weight, rounded to dtype.
struct QuantizeRmsNorm {
  QuantizeTo to;
  const void* x;       ///< [rows, columns]
  const void* weight;  ///< [columns], weight_dtype
  const float* rstd;   ///< [rows]
  int64_t rows;
  int64_t columns;
  DType dtype;
  DType weight_dtype;  ///< dtype, or fp32
};
cudaError_t launch(const QuantizeRmsNorm& p, cudaStream_t stream);

/// silu(gate) · up, rounded to dtype.
struct QuantizeSwiglu {
  QuantizeTo to;        ///< [rows, features]
  const void* gate_up;  ///< [rows, 2·features]
  int64_t rows;
  int64_t features;
  DType dtype;
};
cudaError_t launch(const QuantizeSwiglu& p, cudaStream_t stream);

/// The gradients of gate and up for dout, rounded to dtype.
struct QuantizeSwigluBackward {
  QuantizeTo to;        ///< [rows, 2·features]
  const void* dout;     ///< [rows, features]
  const void* gate_up;  ///< [rows, 2·features]
  int64_t rows;
  int64_t features;
  DType dtype;
};
cudaError_t launch(const QuantizeSwigluBackward& p, cudaStream_t stream);

/// packed, with its first heads rotated by −angle, rounded to dtype.
struct QuantizeRopeBackward {
  QuantizeTo to;
  Rope rope;  ///< `packed` is only read; rows = tokens; head_dim and dims / 2 multiples of 16
};
cudaError_t launch(const QuantizeRopeBackward& p, cudaStream_t stream);

/// fp8::update_scales_ for `count` tensors with `length` maxima each.
struct UpdateScales {
  float* maxima;         ///< [count]
  float* history;        ///< [count, length]
  float* scales;         ///< [count]
  float* inverses;       ///< [count], `inverse_stride` apart
  int64_t* saturations;  ///< [count]
  const float* limits;   ///< [count]
  int64_t count;
  int64_t length;
  int64_t inverse_stride;
  float margin;
};
cudaError_t launch(const UpdateScales& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
