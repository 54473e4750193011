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
  return model;
}

/// Fixed pseudo-random token ids, int64 [rows, length].
inline at::Tensor tokens(int64_t rows, int64_t length, int64_t vocab = 50) {
  return (at::arange(rows * length, at::kLong) * 7919 + 13).fmod(vocab).view({rows, length});
}

inline double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

}  // namespace stablemask::testing_models
