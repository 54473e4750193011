#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

#include "stablemask/config/model_config.h"
#include "stablemask/ops/stable_mask.h"

namespace stablemask::nn {

/// Pseudo scores of an attention layer (ops/stable_mask.h). If learnable, `p_base` and `gamma_raw`,
/// gamma = softplus(gamma_raw), are parameters; otherwise gamma and p_base are buffers.
class StableMaskImpl : public torch::nn::Module {
 public:
  explicit StableMaskImpl(const ModelConfig& config);
  ops::PseudoScores scores() const;
  at::Tensor pseudo_mask(int64_t length) const;                            ///< P [H,T,T]
  at::Tensor log_pseudo_mass(int64_t length, int64_t offset = 0) const;    ///< log S [H,T]
  at::Tensor mask_ratio(const at::Tensor& lse, int64_t offset = 0) const;  ///< lse [...,H,T] → ρ

  /// Multiplies the pseudo mass of every row by exp(log_factor), that is p_base + log_factor, from
  /// now on; a factor of 1 leaves every bit as it is. fp32 0-dim on the model's device, which each
  /// forward pass reads anew; undefined: none. No part of the state that is saved.
  void scale_mass(const at::Tensor& log_factor) { log_factor_ = log_factor; }

 private:
  ops::MaskLength length_;
  at::Tensor gamma_, p_base_, gamma_raw_, log_factor_;
  bool learnable_;
};
TORCH_MODULE(StableMask);

/// StableMask's scale_mass of every layer of a model; without effect on a causal one.
void scale_pseudo_mass(const torch::nn::Module& model, const at::Tensor& log_factor);

}  // namespace stablemask::nn
