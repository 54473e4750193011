#include "stablemask/infer/generate.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/ops/sampling.h"

namespace stablemask {
namespace {

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
  if (!(config.min_p >= 0 && config.min_p <= 1)) {
    throw ConfigError("generate.min_p: must be from 0 to 1; 0 keeps all ids");
  }
  if (!(config.repetition_penalty > 0)) {
    throw ConfigError("generate.repetition_penalty: must be above 0; 1 is none");
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

/// As sample_token; the error says which token, and what to do.
int32_t draw(const at::Tensor& logits, int64_t vocabulary, const GenerateConfig& config,
             int64_t drawn, const at::Tensor& seen) {
  try {
    return sample_token(logits, vocabulary, config, drawn, seen);
  } catch (const NonFiniteError& error) {
    throw NonFiniteError(
        format("generated token %lld: %s; the activations overflow, use another "
               "--dtype or an earlier checkpoint",
               static_cast<long long>(drawn + 1), error.what()));
  }
}

}  // namespace

int32_t sample_token(const at::Tensor& logits, int64_t vocabulary, const GenerateConfig& config,
                     int64_t drawn, const at::Tensor& seen) {
  const auto one = [&](auto value, at::ScalarType type) {
    return at::full({1}, value, logits.options().dtype(type));
  };
  ops::Sampling sampling{one(config.temperature, at::kDouble),
                         one(config.top_k, at::kLong),
                         one(config.top_p, at::kDouble),
                         one(config.min_p, at::kDouble),
                         one(config.repetition_penalty, at::kDouble),
                         one(config.seed, at::kLong),
                         one(drawn, at::kLong),
                         {},
                         {}};
  if (seen.defined()) sampling.seen = seen.unsqueeze(0);
  const at::Tensor row = logits.unsqueeze(0);
  const auto id = ops::sample(row, vocabulary, sampling).item<int64_t>();
  if (id >= 0) return static_cast<int32_t>(id);
  const at::Tensor values = logits.narrow(0, 0, vocabulary).to(at::kCPU, at::kFloat);
  const std::span<const float> all(values.const_data_ptr<float>(), values.size(0));
  const auto unusable = std::ranges::find_if(all, [](float x) { return !std::isfinite(x); });
  throw NonFiniteError(format("the logit of id %lld is %g",
                              static_cast<long long>(unusable - all.begin()),
                              static_cast<double>(std::fabs(*unusable))));
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
  const at::Tensor seen = at::zeros({model->config().vocab_size}, at::kByte);
  seen.index_fill_(0, at::tensor(prompt, at::kInt).to(at::kLong), 1);
  std::vector<int32_t> generated, ids = prompt;
  for (int64_t i = 0; i < config.max_tokens && stop_signal() == 0; ++i) {
    const at::Tensor logits = next_logits(model, cache, ids);
    const int32_t id = draw(logits, vocabulary, config, i, seen);
    generated.push_back(id);
    if ((options.emit && !options.emit(id)) || id == options.stop_id) break;
    ids = {id};
  }
  return generated;
}

}  // namespace stablemask
