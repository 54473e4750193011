#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <cstdlib>

#include "stablemask/config/config.h"

namespace stablemask {

/// Dense bf16 peak of the H100 SXM: what MFU is measured against.
constexpr double kPeakFlops = 989e12;

/// Process-wide settings of LibTorch and of ops/, before the first operator runs.
inline void configure_torch(const TrainConfig& config) {
  if (config.threads > 0) at::set_num_threads(static_cast<int>(config.threads));
  // cuBLAS repeats its bits only with a workspace of fixed size.
  if (config.deterministic) ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::globalContext().setDeterministicAlgorithms(config.deterministic, /*warn_only=*/false);
}

}  // namespace stablemask
