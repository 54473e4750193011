#pragma once

#include <cstdint>

/// Sections "eval" and "generate".
namespace stablemask {

struct EvalConfig {
  int64_t window = 0;  ///< tokens per forward pass; 0: train.context, see resolve()
  int64_t stride = 0;  ///< tokens scored per window, the last ones; 0: window
  int64_t batch = 0;   ///< windows per forward pass; 0: chosen by the program
  int64_t tokens = 0;  ///< of data.valid that a validation before the last step scores; 0: all
};

struct GenerateConfig {
  int64_t max_tokens = 128;
  double temperature = 1.0;  ///< 0: greedy
  int64_t top_k = 0;         ///< 0: all tokens
  double top_p = 1.0;
  double min_p = 0.0;               ///< 0: all tokens
  double repetition_penalty = 1.0;  ///< 1: none
  int64_t seed = 1;
};

}  // namespace stablemask
