#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "src/ops/cuda/launchers.h"

/// Products of few rows for GPUs of compute capability 9.0, with the conventions of launchers.h:
/// bf16 operands, fp32 sums.

namespace stablemask::ops::cuda {

/// out = y · weightᵀ, where y is x or, with `norm`, rms_norm(x) rounded to bf16 as RmsNormForward
/// rounds it. With `residual` it is added before the only rounding. With `gated`, weight has the
/// rows of a gate and then as many of `up`, both products are rounded, and out = silu(gate) · up as
/// SwigluForward computes it.
///
/// A row of the result depends on its row of x alone; its bits are the same for every number of
/// rows.
struct ThinProjection {
  static constexpr int64_t kMaxRows = 32, kMaxInner = 8192;
  const void* x;         ///< [rows, inner]
  const void* norm;      ///< [inner], norm_dtype; null: y = x
  const void* weight;    ///< [columns, inner], with `gated` [2·columns, inner]
  const void* residual;  ///< [rows, columns]; null: 0; not with `gated`
  void* out;             ///< [rows, columns]
  int64_t rows;
  int64_t columns;
  int64_t inner;
  float eps;
  DType norm_dtype;
  bool gated;
  /// The kernel may start before those enqueued before it have ended, and reads the weight at once;
  /// everything else after they have ended (programmatic dependent launch).
  bool overlapped;
};

/// Whether launch() takes the shape: `inner` a multiple of 8, and x small enough for shared memory:
/// 8 rows of 8192, 16 rows of 4096 or 32 rows of 2048.
bool thin_gemm_serves(int64_t rows, int64_t inner);

/// x, norm and weight must start on 16-byte boundaries; otherwise, and for shapes that are not
/// served, cudaErrorInvalidValue.
cudaError_t launch(const ThinProjection& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
