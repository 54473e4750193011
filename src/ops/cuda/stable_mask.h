#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "src/ops/cuda/launchers.h"

/// Launches of StableMask's kernels, under the conditions of launchers.h.

namespace stablemask::ops::cuda {

/// lse' = logaddexp(lse, log_mass), out *= exp(lse − lse'), both in place. Strides in elements.
struct StableMaskCorrection {
  void* out;              ///< [batch, length, heads, dim], last dimension contiguous
  float* lse;             ///< [batch, heads, length]
  const float* log_mass;  ///< [batch, heads, length], strides may be 0
  int64_t out_strides[3];
  int64_t lse_strides[3];
  int64_t mass_strides[3];
  int64_t batch;
  int64_t length;
  int heads;
  int dim;
  DType dtype;
};
cudaError_t launch(const StableMaskCorrection& p, cudaStream_t stream);

/// dlog_mass = −Σ_b ρ·Σ_d dout·out, ρ = exp(log_mass − lse): the gradient of the correction above,
/// from its results; 0 where log_mass is infinite. Strides in elements.
struct StableMaskMassGradient {
  const void* dout;       ///< [batch, length, heads, dim], last dimension contiguous
  const void* out;        ///< as dout
  const float* lse;       ///< [batch, heads, length]
  const float* log_mass;  ///< [batch, heads, length], strides may be 0
  float* dlog_mass;       ///< [batch / summed, heads, length], contiguous
  int64_t dout_strides[3];
  int64_t out_strides[3];
  int64_t lse_strides[3];
  int64_t mass_strides[3];
  int64_t batch;
  int64_t summed;  ///< consecutive sequences that share a mass; divides batch
  int64_t length;
  int heads;
  int dim;
  DType dtype;
};
cudaError_t launch(const StableMaskMassGradient& p, cudaStream_t stream);

/// Rows and mask length of log_pseudo_mass (ops/stable_mask.h). An infinite mask length is n = 0
/// with infinite_beyond.
struct LogMassRows {
  const float* gamma;        ///< [heads]
  const float* p_base;       ///< [heads]
  const int64_t* positions;  ///< [rows]; null: offset, offset + 1, …
  int64_t offset;
  int64_t rows;
  int64_t n;             ///< N
  bool infinite_beyond;  ///< rows i ≥ n have the mass of N = ∞; otherwise none
  int heads;
};

struct LogMassForward {
  LogMassRows in;
  float* log_mass;  ///< [heads, rows]
};
cudaError_t launch(const LogMassForward& p, cudaStream_t stream);

struct LogMassBackward {
  LogMassRows in;
  const float* dlog_mass;  ///< [heads, rows]; not read where log_mass is infinite
  float* dgamma;           ///< [heads]
  float* dp_base;          ///< [heads]
};
cudaError_t launch(const LogMassBackward& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
