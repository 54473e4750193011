#include "stablemask/nn/rope_tables.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "stablemask/ops/functional.h"

namespace stablemask::nn {
namespace {

int64_t next_power_of_two(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

at::Tensor llama3_frequencies(const at::Tensor& plain, const RopeScaling& scaling) {
  const auto context = static_cast<double>(scaling.original_context);
  const double low = scaling.low_freq_factor, high = scaling.high_freq_factor;
  const at::Tensor turns = plain * (context / (2 * std::numbers::pi));  // within the context
  const at::Tensor kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
  return kept * plain + (1 - kept) * plain / scaling.factor;
}

at::Tensor yarn_frequencies(const at::Tensor& plain, double theta, const RopeScaling& scaling) {
  const int64_t pairs = plain.size(0);
  const auto context = static_cast<double>(scaling.original_context);
  // Index m of the pair with `turns` full turns within the context; not an integer.
  const auto pair_of = [&](double turns) {
    return static_cast<double>(pairs) * std::log(context / (turns * 2 * std::numbers::pi)) /
           std::log(theta);
  };
  const double first = std::max(0.0, std::floor(pair_of(scaling.beta_fast)));
  const double last =
      std::min(std::ceil(pair_of(scaling.beta_slow)), static_cast<double>(2 * pairs - 1));
  const double width = last == first ? 0.001 : last - first;
  const at::Tensor divided = ((at::arange(pairs, at::kDouble) - first) / width).clamp(0.0, 1.0);
  return (1 - divided) * plain + divided * plain / scaling.factor;
}

at::Tensor make_table(const ModelConfig& config, int64_t rows) {
  if (config.rope_scaling.kind == RopeScaling::Kind::kLinear) {
    return ops::rope_table(rows, config.resolved_rope_dims(), config.rope_theta,
                           config.rope_scaling.factor);
  }
  const RopeFrequencies changed = rope_frequencies(config);
  return ops::rope_table(rows, changed.values, changed.magnitude);
}

}  // namespace

RopeFrequencies rope_frequencies(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const at::Tensor plain = ops::rope_frequencies(config.resolved_rope_dims(), config.rope_theta);
  switch (scaling.kind) {
    case RopeScaling::Kind::kLlama3:
      return {llama3_frequencies(plain, scaling), 1.0};
    case RopeScaling::Kind::kYarn:
      return {yarn_frequencies(plain, config.rope_theta, scaling),
              scaling.attention_factor > 0 ? scaling.attention_factor
                                           : 0.1 * std::log(scaling.factor) + 1};
    case RopeScaling::Kind::kLinear:
      break;
  }
  return {plain, 1.0};
}

at::Tensor RopeTables::from_start(int64_t length, at::Device device) {
  const bool fits =
      !tables_.empty() && tables_.back().size(0) >= length && tables_.back().device() == device;
  if (!fits) {
    tables_.push_back(make_table(config_, next_power_of_two(length)).to(device));
  }
  return tables_.back();
}

}  // namespace stablemask::nn
