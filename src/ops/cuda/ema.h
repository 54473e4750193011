#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Launch of the average of weights, under the conditions of launchers.h.

namespace stablemask::ops::cuda {

/// average += (1 − d)·(w − average), d = min(decay, (1 + t) / (10 + t)) (ops/ema.h).
struct Ema {
  float* average;
  const void* weights;       ///< fp32, or bf16 with a remainder
  const int16_t* remainder;  ///< null: the weights are fp32
  int64_t size;
  double decay;
  const double* control;  ///< lr, t, grad_scale; grad_scale < 0: no update
};
cudaError_t launch(const Ema& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
