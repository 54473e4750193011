#include "stablemask/infer/generate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "src/infer/request_checks.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/infer/generator.h"
#include "stablemask/ops/sampling.h"

namespace stablemask {

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
  std::vector<int32_t> ids = {tokenizer.start_id()};
  try {
    for (const int32_t id : tokenizer.encode(text)) ids.push_back(id);
  } catch (const DataError& error) {
    throw DataError(what + ": " + error.what());
  }
  return ids;
}

std::vector<int32_t> generate(nn::Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerateConfig& config, const GenerateOptions& options) {
  std::vector<int32_t> generated;
  infer::Outcome outcome;
  infer::GenerateRequest request;
  request.prompt = prompt;
  request.settings = config;
  if (options.stop_id >= 0) request.stop_ids = {options.stop_id};
  request.emit = [&](const infer::DrawnToken& token) {
    generated.push_back(token.id);
    return !options.emit || options.emit(token.id);
  };
  request.done = [&](const infer::Outcome& result) { outcome = result; };
  const int64_t vocabulary = model->config().vocab_size;
  infer::check_request(request, vocabulary, vocabulary);
  infer::Generator generator(model,
                             {.max_batch = 1,
                              .capacity = static_cast<int64_t>(prompt.size()) + config.max_tokens,
                              .vocab_size = options.vocab_size});
  generator.add(std::move(request));
  generator.run();
  if (outcome.finish == infer::Finish::kNonFinite) throw NonFiniteError(outcome.error);
  return generated;
}

}  // namespace stablemask
