#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "stablemask/infer/generator.h"
#include "stablemask/nn/model.h"

namespace stablemask::infer::testing {

/// A text that a Generator has continued.
struct Text {
  std::vector<DrawnToken> tokens;
  std::vector<Outcome> outcomes;  ///< one, once the text has ended

  std::vector<int32_t> ids() const {
    std::vector<int32_t> ids;
    for (const DrawnToken& token : tokens) ids.push_back(token.id);
    return ids;
  }
  Finish finish() const { return outcomes.at(0).finish; }
};

/// A request for `max_tokens` greedy ids after `prompt`.
inline GenerateRequest greedy(std::vector<int32_t> prompt, int64_t max_tokens) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.settings.temperature = 0;
  request.settings.max_tokens = max_tokens;
  return request;
}

inline GenerateRequest sampled(std::vector<int32_t> prompt, int64_t max_tokens, int64_t seed) {
  GenerateRequest request = greedy(std::move(prompt), max_tokens);
  request.settings.temperature = 1;
  request.settings.seed = seed;
  return request;
}

/// Adds the request; the text is written to `text`, which must stay where it is.
inline uint64_t add_into(Text& text, Generator& generator, GenerateRequest request) {
  const auto emit = request.emit;
  request.emit = [&text, emit](const DrawnToken& token) {
    text.tokens.push_back(token);
    return !emit || emit(token);
  };
  request.done = [&text](const Outcome& outcome) { text.outcomes.push_back(outcome); };
  return generator.add(std::move(request));
}

/// All texts to their end, at most `max_batch` at a time.
inline std::vector<Text> run_all(const nn::Transformer& model,
                                 const std::vector<GenerateRequest>& requests, int64_t max_batch,
                                 bool cuda_graphs = true) {
  GeneratorOptions options{.max_batch = max_batch, .cuda_graphs = cuda_graphs};
  for (const GenerateRequest& request : requests) {
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    options.capacity = std::max(options.capacity, prompt + request.settings.max_tokens);
  }
  Generator generator(model, options);
  std::vector<Text> texts(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) add_into(texts[i], generator, requests[i]);
  generator.run();
  EXPECT_EQ(generator.running() + generator.waiting(), 0);
  for (const Text& text : texts) EXPECT_EQ(text.outcomes.size(), 1u);
  return texts;
}

/// Log-probabilities of each id of the text, fp32 [ids,V] on the CPU, by one forward pass without a
/// cache.
inline at::Tensor full_logprobs(nn::Transformer model, const GenerateRequest& request,
                                const Text& text) {
  const at::NoGradGuard no_grad;
  std::vector<int32_t> all = request.prompt;
  for (const DrawnToken& token : text.tokens) all.push_back(token.id);
  all.pop_back();
  const at::Tensor tokens = at::tensor(all, at::kInt).to(model->head_weight().device(), at::kLong);
  const at::Tensor logits = model->logits(tokens.unsqueeze(0))[0].to(at::kCPU, at::kFloat);
  return at::log_softmax(logits, 1).slice(0, static_cast<int64_t>(request.prompt.size()) - 1);
}

/// Each id of a greedy text is the likeliest one of a full forward pass, and its reported
/// logarithms are that pass's, within `tolerance`.
inline void expect_full_forward(const nn::Transformer& model, const GenerateRequest& request,
                                const Text& text, double tolerance) {
  ASSERT_EQ(static_cast<int64_t>(text.tokens.size()), request.settings.max_tokens);
  const at::Tensor full = full_logprobs(model, request, text);
  for (size_t i = 0; i < text.tokens.size(); ++i) {
    const DrawnToken& token = text.tokens[i];
    const at::Tensor row = full[static_cast<int64_t>(i)];
    EXPECT_NEAR(row[token.id].item<double>(), row.max().item<double>(), tolerance) << i;
    EXPECT_NEAR(token.logprob, row[token.id].item<double>(), tolerance) << i;
    ASSERT_EQ(static_cast<int64_t>(token.top.size()), request.logprobs);
    const at::Tensor sorted = std::get<0>(row.sort(0, /*descending=*/true));
    for (size_t rank = 0; rank < token.top.size(); ++rank) {
      const auto [id, logprob] = token.top[rank];
      EXPECT_NEAR(logprob, row[id].item<double>(), tolerance) << i;
      EXPECT_NEAR(logprob, sorted[static_cast<int64_t>(rank)].item<double>(), tolerance) << i;
    }
  }
}

}  // namespace stablemask::infer::testing
