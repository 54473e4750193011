#pragma once

#include "src/ops/cuda/launchers.h"

/// Kernels of ops/muon.h, with the conventions of launchers.h. Arguments that change from update to
/// update are read from `control` (ops/optimizer.h).

namespace stablemask::ops::cuda {

/// m = μ·m + g, sum = g + μ·m, g = grad_scale·grad.
struct MuonMomentum {
  float* momentum;
  void* sum;
  const float* grad;
  int64_t size;
  float mu;
  const double* control;
  DType dtype;  ///< of sum
};
cudaError_t launch(const MuonMomentum& p, cudaStream_t stream);

/// w = (1 − lr·weight_decay)·w − lr·update.
struct MuonApply {
  void* weights;       ///< fp32, or bf16 with a remainder (ops/optimizer.h, SplitWeights)
  int16_t* remainder;  ///< null: the weights are fp32
  const void* update;
  int64_t size;
  double weight_decay;
  const double* control;
  DType dtype;  ///< of update
};
cudaError_t launch(const MuonApply& p, cudaStream_t stream);

/// Each bf16 matrix divided by its Frobenius norm, or its transpose; 0 where the norm is 0. A norm
/// whose square vanishes in fp32 counts as 0.
struct NormalizeMatrices {
  static constexpr int kPartials = 32;
  const void* from;  ///< [matrices], `stride` elements apart, each [rows, cols]
  void* to;          ///< [matrices, rows, cols], or transposed [matrices, cols, rows]
  int64_t stride;
  int64_t matrices;
  int64_t rows;
  int64_t cols;
  bool transposed;
  float* partials;  ///< scratch [matrices, kPartials]
};
cudaError_t launch(const NormalizeMatrices& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
