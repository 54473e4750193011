#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/nn/model.h"

namespace stablemask::testing_models {

using Row = std::vector<double>;

/// One head of the literal model: rows of real weights (columns 0 … i) and of the weights of every
/// pseudo slot (columns i + 1 and later).
struct LiteralHead {
  std::vector<Row> real, slots;
};

/// The whole model written down a second time: fp64, from the parameters alone, one column per
/// pseudo slot.
struct Literal {
  Literal(nn::Transformer& trained, const std::vector<int64_t>& tokens,
          std::vector<int64_t> document_start = {})
      : model(trained), config(trained->config()), starts(std::move(document_start)) {
    const at::NoGradGuard no_grad;
    if (starts.empty()) starts.assign(tokens.size(), 0);
    at::Tensor x = weight("embedding").index_select(0, at::tensor(tokens));
    if (config.position == Position::kLearned) {
      const at::Tensor rows = at::arange(x.size(0), at::kLong) - at::tensor(starts);
      x = x + weight("position_embedding").index_select(0, rows);
    }
    hidden.push_back(x);
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      const std::string block = "blocks." + std::to_string(layer) + ".";
      const at::Tensor attended = x + attention(block, norm(x, block + "attention_norm"));
      const at::Tensor& ffn_input = config.parallel_residual ? x : attended;
      x = attended + feed_forward(block, norm(ffn_input, block + "ffn_norm"));
      hidden.push_back(x);
    }
    hidden.push_back(norm(x, "norm"));
  }

  at::Tensor weight(const std::string& name) {
    return model->named_parameters()[name].detach().to(at::kDouble);
  }

  at::Tensor norm(const at::Tensor& x, const std::string& name) {
    if (config.norm == NormKind::kRms) {
      return x / (x.square().mean(1, true) + config.norm_eps).sqrt() * weight(name + ".weight");
    }
    const at::Tensor centred = x - x.mean(1, true);
    return centred / (centred.square().mean(1, true) + config.norm_eps).sqrt() *
               weight(name + ".weight") +
           weight(name + ".bias");
  }

  /// x · Wᵀ and, if the config has one, the bias.
  at::Tensor linear(const at::Tensor& x, const std::string& name) {
    const at::Tensor product = at::matmul(x, weight(name).t());
    const bool of_qkv = name.ends_with("qkv");
    const bool biased = config.bias == BiasKind::kAll || (config.bias == BiasKind::kQkv && of_qkv);
    return biased ? product + weight(name + "_bias") : product;
  }

  at::Tensor feed_forward(const std::string& block, const at::Tensor& x) {
    const at::Tensor up = linear(x, block + "ffn.up");
    return linear(activated(up), block + "ffn.down");
  }

  at::Tensor activated(const at::Tensor& up) const {
    if (config.ffn == FfnKind::kGelu) return up * (1 + at::erf(up / std::sqrt(2.0))) / 2;
    if (config.ffn == FfnKind::kGeluTanh) {
      const double factor = std::sqrt(2 / std::acos(-1.0));
      return up * (1 + at::tanh(factor * (up + 0.044715 * up * up * up))) / 2;
    }
    const at::Tensor gate = up.slice(1, 0, config.ffn_hidden);
    return gate / (1 + (-gate).exp()) * up.slice(1, config.ffn_hidden);
  }

  /// Radians per position of the pair m.
  double frequency(int64_t m) const {
    const RopeScaling& s = config.rope_scaling;
    const double pi = std::acos(-1.0), dims = static_cast<double>(config.resolved_rope_dims());
    const double plain = std::pow(config.rope_theta, -2.0 * static_cast<double>(m) / dims);
    const auto context = static_cast<double>(s.original_context);
    const double turns = context * plain / (2 * pi);
    if (s.kind == RopeScaling::Kind::kLlama3) {
      if (turns > s.high_freq_factor) return plain;
      if (turns < s.low_freq_factor) return plain / s.factor;
      const double part = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      return (1 - part) * plain / s.factor + part * plain;
    }
    if (s.kind == RopeScaling::Kind::kYarn) {
      const auto pair = [&](double wanted) {
        return dims / 2 * std::log(context / (2 * pi * wanted)) / std::log(config.rope_theta);
      };
      const double first = std::floor(pair(s.beta_fast)), last = std::ceil(pair(s.beta_slow));
      const double t = std::clamp((static_cast<double>(m) - first) / (last - first), 0.0, 1.0);
      return plain * (1 - t) + plain / s.factor * t;
    }
    return plain / s.factor;
  }

  /// Rotates the pairs (m, m + R/2) of x [T,heads,D] by position · frequency(m).
  at::Tensor rotated(const at::Tensor& x) const {
    const int64_t half = config.resolved_rope_dims() / 2;
    std::vector<double> frequencies;
    for (int64_t m = 0; m < half; ++m) frequencies.push_back(frequency(m));
    double length = 1;
    if (config.rope_scaling.kind == RopeScaling::Kind::kYarn) {
      length = config.rope_scaling.attention_factor;
      if (length == 0) length = 1 + std::log(config.rope_scaling.factor) / 10;
    }
    const at::Tensor position = at::arange(x.size(0), at::kDouble) - at::tensor(starts);
    const at::Tensor angle = position.view({-1, 1, 1}) * at::tensor(frequencies, at::kDouble);
    const at::Tensor a = x.slice(2, 0, half), b = x.slice(2, half, 2 * half);
    const at::Tensor first = a * angle.cos() - b * angle.sin();
    const at::Tensor second = b * angle.cos() + a * angle.sin();
    return at::cat({first * length, second * length, x.slice(2, 2 * half)}, 2);
  }

  at::Tensor attention(const std::string& block, const at::Tensor& x) {
    const int64_t heads = config.heads, kv = config.resolved_kv_heads(), length = x.size(0);
    const at::Tensor packed = linear(x, block + "attention.qkv").view({length, heads + 2 * kv, -1});
    at::Tensor q = packed.slice(1, 0, heads), k = packed.slice(1, heads, heads + kv);
    if (config.position == Position::kRope) std::tie(q, k) = std::pair(rotated(q), rotated(k));
    layers.emplace_back();
    std::vector<at::Tensor> out;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t group = h / (heads / kv);
      const at::Tensor scores = at::matmul(q.select(1, h), k.select(1, group).t());
      layers.back().push_back(head(block, h, scores / std::sqrt(static_cast<double>(q.size(2)))));
      at::Tensor weights = at::zeros({length, length}, at::kDouble);
      for (int64_t i = 0; i < length; ++i) {
        weights[i].slice(0, 0, i + 1).copy_(at::tensor(layers.back().back().real[i], at::kDouble));
      }
      out.push_back(at::matmul(weights, packed.select(1, heads + kv + group)));
    }
    return linear(at::cat(out, 1), block + "attention.proj");
  }

  LiteralHead head(const std::string& block, int64_t h, const at::Tensor& scores) {
    const auto score = scores.accessor<double, 2>();
    const double slope =
        std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(config.heads));
    const GammaSpec spec = config.resolved_gamma();
    double gamma = spec.kind == GammaSpec::Kind::kSlopes ? slope : spec.value.values[0];
    double p_base = config.stable_mask.p_base.values[0];
    if (config.stable_mask.learnable) {
      gamma =
          std::log1p(std::exp(weight(block + "attention.stable_mask.gamma_raw")[h].item<double>()));
      p_base = weight(block + "attention.stable_mask.p_base")[h].item<double>();
    }
    LiteralHead head;
    for (int64_t i = 0; i < scores.size(0); ++i) {
      Row real, slots;
      double sum = 0;
      for (int64_t j = 0; j <= i; ++j) {
        const bool seen = j >= starts[i] && (config.window == 0 || j > i - config.window);
        const double bias = config.position == Position::kAlibi ? slope * (i - j) : 0.0;
        real.push_back(seen ? std::exp(score[i][j] - bias) : 0.0);
        sum += real.back();
      }
      for (int64_t j = i + 1; j < starts[i] + slot_end(i - starts[i], scores.size(0)); ++j) {
        slots.push_back(std::exp(p_base - gamma * static_cast<double>(j - i - 1)));
        sum += slots.back();
      }
      for (double& w : real) w /= sum;
      for (double& w : slots) w /= sum;
      head.real.push_back(std::move(real));
      head.slots.push_back(std::move(slots));
    }
    return head;
  }

  /// The column after the last pseudo slot of row i, both counted from the start of the document.
  /// Infinitely many slots end where their scores are below −60.
  int64_t slot_end(int64_t i, int64_t length) const {
    constexpr int64_t kAlmostInfinite = 60 * 256;
    const StableMaskConfig& mask = config.stable_mask;
    if (!mask.enabled) return 0;
    if (mask.mask_length.kind == MaskLengthSpec::Kind::kInfinite) return i + kAlmostInfinite;
    if (mask.mask_length.kind == MaskLengthSpec::Kind::kSequence) return length;
    const bool beyond = i >= mask.mask_length.length && mask.beyond == BeyondMask::kInfinite;
    return beyond ? i + kAlmostInfinite : mask.mask_length.length;
  }

  nn::Transformer& model;
  ModelConfig config;
  std::vector<int64_t> starts;
  std::vector<at::Tensor> hidden;                ///< [layers + 2] of [T,C]
  std::vector<std::vector<LiteralHead>> layers;  ///< [layers][H]
};

}  // namespace stablemask::testing_models
