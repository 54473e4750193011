#include "stablemask/infer/generate.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/random.h"
#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

/// Uniform in [0, 1) with 53 random bits.
double uniform(SplitMix64& random) { return static_cast<double>(random.next() >> 11) * 0x1.0p-53; }

/// Logits of the id that follows `ids`, which continue the sequence in the cache: fp32 [V], on the
/// host. A prompt longer than a bounded cache runs in parts.
at::Tensor next_logits(nn::Transformer& model, nn::KvCache& cache,
                       const std::vector<int32_t>& ids) {
  const at::Device device = model->head_weight().device();
  const at::Tensor tokens = torch::tensor(ids, torch::kInt).to(device, at::kLong).unsqueeze(0);
  nn::ForwardArgs args;
  args.cache = &cache;
  int64_t done = 0;
  while (tokens.size(1) - done > cache.longest_append()) {
    const int64_t part = cache.longest_append();
    model->hidden(tokens.narrow(1, done, part), args);
    done += part;
  }
  const at::Tensor last = tokens.narrow(1, done, tokens.size(1) - done);
  return model->next_logits(last, args).squeeze(0).to(at::kCPU, at::kFloat).contiguous();
}

/// The ranges of the config's fields (docs/config.md).
void check_config(const GenerateConfig& config) {
  if (config.max_tokens < 1) throw ConfigError("generate.max_tokens: must be at least 1");
  if (!(config.temperature >= 0)) throw ConfigError("generate.temperature: must be at least 0");
  if (config.top_k < 0) throw ConfigError("generate.top_k: must be at least 0; 0 keeps all ids");
  if (!(config.top_p > 0 && config.top_p <= 1)) {
    throw ConfigError("generate.top_p: must be above 0 and at most 1; 1 keeps all ids");
  }
}

/// The number of ids to draw from.
int64_t drawn_vocabulary(const nn::Transformer& model, const GenerateOptions& options) {
  const int64_t model_size = model->config().vocab_size;
  if (options.vocab_size < 0 || options.vocab_size > model_size) {
    throw ConfigError(format("generate: a vocabulary of %lld ids, but the model has %lld",
                             static_cast<long long>(options.vocab_size),
                             static_cast<long long>(model_size)));
  }
  return options.vocab_size == 0 ? model_size : options.vocab_size;
}

void check_prompt(const std::vector<int32_t>& prompt, int64_t vocabulary) {
  if (prompt.empty()) throw ConfigError("generate: the prompt needs at least one token");
  for (const int32_t id : prompt) {
    if (id >= 0 && id < vocabulary) continue;
    throw ConfigError(format("generate: id %d of the prompt is outside the vocabulary of %lld", id,
                             static_cast<long long>(vocabulary)));
  }
}

int32_t draw(const at::Tensor& logits, int64_t vocabulary, const GenerateConfig& config, double u,
             int64_t position) {
  try {
    return sample_token({logits.const_data_ptr<float>(), static_cast<size_t>(vocabulary)}, config,
                        u);
  } catch (const NonFiniteError& error) {
    throw NonFiniteError(
        format("generated token %lld: %s; the activations overflow, use another "
               "--dtype or an earlier checkpoint",
               static_cast<long long>(position + 1), error.what()));
  }
}

}  // namespace

int32_t sample_token(std::span<const float> logits, const GenerateConfig& config, double u) {
  const auto unusable =
      std::find_if(logits.begin(), logits.end(), [](float x) { return !std::isfinite(x); });
  if (unusable != logits.end()) {
    throw NonFiniteError(format("the logit of id %lld is %g",
                                static_cast<long long>(unusable - logits.begin()),
                                static_cast<double>(std::fabs(*unusable))));
  }
  if (config.temperature <= 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  const auto vocabulary = static_cast<int64_t>(logits.size());
  std::vector<int32_t> order(vocabulary);
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const int64_t kept = config.top_k > 0 ? std::min(config.top_k, vocabulary) : vocabulary;
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), likelier);

  std::vector<double> mass(kept);
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) {
    mass[i] = std::exp((logits[order[i]] - logits[order[0]]) / config.temperature);
    total += mass[i];
  }
  // The fewest likeliest ids that hold top_p of the mass.
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

std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text,
                                const std::string& what) {
  std::vector<int32_t> ids = {tokenizer.eos_id()};
  try {
    for (const int32_t id : tokenizer.encode(text)) ids.push_back(id);
  } catch (const DataError& error) {
    throw DataError(what + ": " + error.what());
  }
  return ids;
}

std::vector<int32_t> generate(nn::Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerateConfig& config, const GenerateOptions& options) {
  check_config(config);
  const int64_t vocabulary = drawn_vocabulary(model, options);
  check_prompt(prompt, model->config().vocab_size);
  torch::NoGradGuard no_grad;
  model->eval();
  nn::KvCache cache(model->config(), 1, static_cast<int64_t>(prompt.size()) + config.max_tokens,
                    model->head_weight().options().requires_grad(false));
  SplitMix64 random(static_cast<uint64_t>(config.seed));
  std::vector<int32_t> generated, ids = prompt;
  for (int64_t i = 0; i < config.max_tokens && stop_signal() == 0; ++i) {
    const at::Tensor logits = next_logits(model, cache, ids);
    const int32_t id = draw(logits, vocabulary, config, uniform(random), i);
    generated.push_back(id);
    if ((options.emit && !options.emit(id)) || id == options.stop_id) break;
    ids = {id};
  }
  return generated;
}

}  // namespace stablemask
