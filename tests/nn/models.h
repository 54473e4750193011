#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "stablemask/config/config.h"
#include "stablemask/nn/model.h"

namespace stablemask::testing_models {

/// A model small enough for tests: 2 layers, 4 heads of 8, V = 50, mask length `n`.
inline ModelConfig tiny_config(Position position, bool stable_mask, int64_t n = 16) {
  ModelConfig config;
  config.vocab_size = 50;
  config.layers = 2;
  config.channels = 32;
  config.heads = 4;
  config.ffn_hidden = 40;
  config.position = position;
  config.init_std = 0.2;  // large, so that predictions are far from uniform
  config.stable_mask.enabled = stable_mask;
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kFixed, n};
  return config;
}

inline nn::Transformer tiny_model(const ModelConfig& config, uint64_t seed = 1) {
  nn::Transformer model(config);
  model->init_weights(seed);
  // Zeros would hide what biases do.
  const at::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    if (!item.key().ends_with("_bias")) continue;
    at::Tensor& bias = item.value();
    bias.copy_(at::sin(at::arange(bias.numel(), at::kFloat) * 1.7 + item.key().size()) * 0.3);
  }
  return model;
}

/// Models with the options of other families, as changes of tiny_config. Biases and learned
/// positions are large enough to be seen (tiny_model).
struct Family {
  const char* name;
  void (*change)(ModelConfig&);
};
inline constexpr Family kFamilies[] = {
    {"Gpt2",
     [](ModelConfig& c) {
       c.position = Position::kLearned, c.learned_positions = 128;
       c.bias = BiasKind::kAll, c.norm = NormKind::kLayer, c.ffn = FfnKind::kGeluTanh;
       c.tied_head = true;
     }},
    {"GptNeoX",
     [](ModelConfig& c) {
       c.parallel_residual = true, c.rope_dims = 4;
       c.bias = BiasKind::kAll, c.norm = NormKind::kLayer, c.ffn = FfnKind::kGelu;
     }},
    {"Qwen2", [](ModelConfig& c) { c.bias = BiasKind::kQkv, c.kv_heads = 2; }},
    {"Llama31",
     [](ModelConfig& c) {
       c.rope_scaling = {.kind = RopeScaling::Kind::kLlama3, .factor = 8, .original_context = 16};
       c.rope_theta = 50, c.head_dim = 16, c.kv_heads = 2;
     }},
    {"Yarn",
     [](ModelConfig& c) {
       c.rope_scaling = {.kind = RopeScaling::Kind::kYarn, .factor = 4, .original_context = 64};
       c.rope_scaling.beta_fast = 4;
       c.rope_theta = 50, c.head_dim = 16, c.bias = BiasKind::kAll;
     }},
    {"ParallelSwiglu", [](ModelConfig& c) { c.parallel_residual = true, c.bias = BiasKind::kAll; }},
};

/// Fixed pseudo-random token ids, int64 [rows, length].
inline at::Tensor tokens(int64_t rows, int64_t length, int64_t vocab = 50) {
  return (at::arange(rows * length, at::kLong) * 7919 + 13).fmod(vocab).view({rows, length});
}

inline double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

}  // namespace stablemask::testing_models
