#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "stablemask/config/model_config.h"

namespace stablemask::nn {

/// Frequencies f_m = theta^(−2m/R) of RoPE's R/2 pairs, in radians per position, after a change by
/// config.rope_scaling with factor s and original context L; λ_m = 2π/f_m is the wavelength:
/// linear: unchanged; the positions are divided by s instead (ops::rope_table).
/// llama3 (Llama 3.1): f_m where λ_m < L/high_freq_factor; f_m/s where λ_m > L/low_freq_factor;
///   between them r·f_m + (1−r)·f_m/s, r = (L/λ_m − low)/(high − low).
/// yarn (Peng et al., arXiv 2309.00071): (1−t_m)·f_m + t_m·f_m/s, where t rises linearly in m from
///   0 at the pair that turns beta_fast times within L to 1 at the pair that turns beta_slow times;
///   the first of these pairs is rounded down, the second up, as in the authors' program.
struct RopeFrequencies {
  at::Tensor values;       ///< fp64 [R/2]
  double magnitude = 1.0;  ///< factor of cos and sin: yarn's attention factor
};
RopeFrequencies rope_frequencies(const ModelConfig& config);

/// The tables of ops::rope_table that a model's forward passes read, made when they are needed.
class RopeTables {
 public:
  explicit RopeTables(const ModelConfig& config) : config_(config) {}

  /// fp32 [rows, dims] of positions 0 … length−1 and possibly more.
  at::Tensor from_start(int64_t length, at::Device device);

 private:
  ModelConfig config_;
  /// Of increasing length. All are kept, because a CUDA graph reads the table it was captured with.
  std::vector<at::Tensor> tables_;
};

}  // namespace stablemask::nn
