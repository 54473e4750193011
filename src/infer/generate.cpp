#include "stablemask/infer/generate.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

/// Uniform in [0, 1), a pure function of (seed, index) (SplitMix64, Steele et al. 2014).
double uniform(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

/// fp32 logits on the host behind the last of `ids`, which follow what the cache holds.
at::Tensor next_logits(nn::Transformer& model, nn::KvCache& cache,
                       const std::vector<int32_t>& ids) {
  const at::Device device = model->head_weight().device();
  const at::Tensor tokens = torch::tensor(ids, torch::kInt).to(device, at::kLong).unsqueeze(0);
  nn::ForwardArgs args;
  args.cache = &cache;
  return model->next_logits(tokens, args).squeeze(0).to(at::kCPU, at::kFloat).contiguous();
}

}  // namespace

int32_t sample_token(const float* logits, int64_t vocab, const GenerateConfig& config, double u) {
  if (config.temperature <= 0) {
    return static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
  }
  std::vector<int32_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const int64_t kept = config.top_k > 0 ? std::min(config.top_k, vocab) : vocab;
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), likelier);

  std::vector<double> mass(kept);
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) {
    mass[i] = std::exp((logits[order[i]] - logits[order[0]]) / config.temperature);
    total += mass[i];
  }
  // The smallest set of likeliest tokens that holds top_p of the mass.
  int64_t nucleus = 0;
  double held = 0;
  while (nucleus < kept && (nucleus == 0 || held < config.top_p * total)) held += mass[nucleus++];

  double left = u * held;
  for (int64_t i = 0; i < nucleus; ++i) {
    left -= mass[i];
    if (left < 0) return order[i];
  }
  return order[nucleus - 1];
}

std::vector<int32_t> generate(nn::Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerateConfig& config, int32_t eos_id,
                              const std::function<bool(int32_t)>& emit) {
  if (prompt.empty()) throw ConfigError("generate: the prompt needs at least one token");
  torch::NoGradGuard no_grad;
  model->eval();
  const at::Tensor& weight = model->head_weight();
  nn::KvCache cache(model->config(), 1, static_cast<int64_t>(prompt.size()) + config.max_tokens,
                    weight.options().requires_grad(false));
  std::vector<int32_t> generated, ids = prompt;
  for (int64_t i = 0; i < config.max_tokens && stop_signal() == 0; ++i) {
    const at::Tensor logits = next_logits(model, cache, ids);
    const int32_t id = sample_token(logits.const_data_ptr<float>(), logits.numel(), config,
                                    uniform(static_cast<uint64_t>(config.seed), i));
    generated.push_back(id);
    if ((emit && !emit(id)) || id == eos_id) break;
    ids = {id};
  }
  return generated;
}

}  // namespace stablemask
