#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>

#include "stablemask/config/config.h"

/// What `stablemask bench` runs. Each prints its table as the figures come and returns them.
namespace stablemask::bench {

struct Report {
  nlohmann::ordered_json json;
  bool right = true;  ///< false: a result failed its check against the reference and was not timed
};

/// Every CUDA kernel of ops/ at the shapes of the 160M and the 1.4B model, with GB/s. Throws
/// ConfigError without a GPU.
Report run_ops();

/// Attention forward and backward, plain and with StableMask and ALiBi, against LibTorch's cuDNN
/// operator and the literal way. Throws ConfigError without a GPU.
Report run_attention();

struct StepOptions {
  Config config;  ///< model with its vocabulary, train, optimizer; data is not read
  int64_t timed_steps = 30;
  bool kernels = false;  ///< also add up the GPU's kernels by part of the step
};

/// Whole optimizer steps on random tokens, on any device. Throws OutOfMemoryError, NonFiniteError.
Report run_step(const StepOptions& options);

}  // namespace stablemask::bench
