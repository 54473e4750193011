#include "stablemask/infer/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::tiny_config;
using testing_models::tiny_model;

GenerateConfig greedy(int64_t max_tokens) {
  GenerateConfig config;
  config.temperature = 0;
  config.max_tokens = max_tokens;
  return config;
}

/// Greedy decoding without a cache: a full forward for each token.
std::vector<int32_t> generate_uncached(nn::Transformer& model, std::vector<int32_t> ids,
                                       int64_t count) {
  at::NoGradGuard no_grad;
  const size_t prompt = ids.size();
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor tokens = at::tensor(ids, at::kInt).to(at::kLong).unsqueeze(0);
    ids.push_back(model->logits(tokens).select(1, -1).argmax().item<int32_t>());
  }
  return {ids.begin() + prompt, ids.end()};
}

class EveryAttention : public testing::TestWithParam<std::tuple<Position, bool>> {};

TEST_P(EveryAttention, CachedGenerationEqualsFullForwardsPastTheMaskLength) {
  const auto [position, stable_mask] = GetParam();
  nn::Transformer model = tiny_model(tiny_config(position, stable_mask, 16));
  const std::vector<int32_t> prompt = {3, 1, 4, 1, 5};
  EXPECT_EQ(generate(model, prompt, greedy(25)), generate_uncached(model, prompt, 25));
}

INSTANTIATE_TEST_SUITE_P(Generate, EveryAttention,
                         testing::Combine(testing::Values(Position::kRope, Position::kAlibi),
                                          testing::Bool()));

TEST(Generate, IsAFunctionOfTheSeed) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  GenerateConfig config;
  config.max_tokens = 20;
  const auto first = generate(model, {7}, config);
  EXPECT_EQ(first, generate(model, {7}, config));
  config.seed = 2;
  EXPECT_NE(first, generate(model, {7}, config));
}

TEST(Generate, StopsAtEosAtTheCallersWishAndOnASignal) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  const auto all = generate(model, {7}, greedy(10));
  ASSERT_EQ(all.size(), 10u);
  const auto until_eos = generate(model, {7}, greedy(10), all[4]);
  EXPECT_EQ(until_eos.back(), all[4]);
  EXPECT_LE(until_eos.size(), 5u);
  EXPECT_EQ(generate(model, {7}, greedy(10), -1, [](int32_t) { return false; }).size(), 1u);
  request_stop(15);
  EXPECT_TRUE(generate(model, {7}, greedy(10)).empty());
  request_stop(0);
}

TEST(Generate, RefusesAMaskOfTheBlocksLengthAndAnEmptyPrompt) {
  ModelConfig config = tiny_config(Position::kRope, true);
  nn::Transformer model = tiny_model(config);
  EXPECT_THROW(generate(model, {}, greedy(1)), ConfigError);
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kSequence, 0};
  nn::Transformer literal = tiny_model(config);
  EXPECT_THROW(generate(literal, {1}, greedy(1)), ConfigError);
}

/// How often each id is drawn for evenly spaced u.
std::map<int32_t, double> frequencies(const std::vector<float>& logits,
                                      const GenerateConfig& config) {
  constexpr int kDraws = 10000;
  std::map<int32_t, double> counts;
  for (int i = 0; i < kDraws; ++i) {
    counts[sample_token(logits.data(), logits.size(), config, (i + 0.5) / kDraws)] += 1.0 / kDraws;
  }
  return counts;
}

TEST(SampleToken, DrawsFromTheSoftmaxAtItsTemperature) {
  const std::vector<float> logits = {0.0f, 2.0f, -1.0f, 1.0f};
  GenerateConfig config;
  config.temperature = 2.0;
  double total = 0;
  for (const float logit : logits) total += std::exp(logit / 2.0);
  const auto drawn = frequencies(logits, config);
  for (int32_t id = 0; id < 4; ++id) {
    EXPECT_NEAR(drawn.at(id), std::exp(logits[id] / 2.0) / total, 2e-4) << id;
  }
}

TEST(SampleToken, TopKAndTopPKeepTheLikeliestOnly) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.15f),
                                     std::log(0.25f)};
  GenerateConfig top_k;
  top_k.top_k = 2;
  const auto two = frequencies(logits, top_k);
  EXPECT_EQ(two.size(), 2u);
  EXPECT_NEAR(two.at(1), 2.0 / 3, 2e-4);
  GenerateConfig top_p;
  top_p.top_p = 0.8;  // 0.5 + 0.25 is not enough
  const auto nucleus = frequencies(logits, top_p);
  EXPECT_EQ(nucleus.size(), 3u);
  EXPECT_EQ(nucleus.count(0), 0u);
  top_p.top_p = 0.0;
  EXPECT_EQ(frequencies(logits, top_p).size(), 1u);
}

TEST(SampleToken, GreedyTakesTheLowestIdOfEqualOnes) {
  const std::vector<float> logits = {1.0f, 3.0f, 3.0f};
  EXPECT_EQ(sample_token(logits.data(), 3, greedy(1), 0.99), 1);
  GenerateConfig one;
  one.top_k = 1;
  EXPECT_EQ(sample_token(logits.data(), 3, one, 0.99), 1);
}

}  // namespace
}  // namespace stablemask
