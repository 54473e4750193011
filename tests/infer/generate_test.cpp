#include "stablemask/infer/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <vector>

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
  const auto until_eos = generate(model, {7}, greedy(10), {.stop_id = all[4]});
  EXPECT_EQ(until_eos.back(), all[4]);
  EXPECT_LE(until_eos.size(), 5u);
  EXPECT_EQ(generate(model, {7}, greedy(10), {.emit = [](int32_t) { return false; }}).size(), 1u);
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

/// mix64 and its increment are written down a second time: the texts of a seed must not change.
double uniform_of(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return static_cast<double>((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

/// The first of the `kept` likeliest ids at which the sum of probabilities exceeds u of the whole.
int32_t id_at(std::span<const float> logits, size_t kept, double u) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(), [&](int32_t id) { return logits[id]; });
  order.resize(kept);
  double whole = 0, sum = 0;
  for (const int32_t id : order) whole += std::exp(static_cast<double>(logits[id]));
  for (const int32_t id : order) {
    sum += std::exp(static_cast<double>(logits[id]));
    if (sum > u * whole) return id;
  }
  return order.back();
}

TEST(Generate, DrawsWithSplitMix64OfTheSeed) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  GenerateConfig config;
  config.max_tokens = 12;
  config.seed = 7;
  config.top_k = 20;
  std::vector<int32_t> ids = {7};
  at::NoGradGuard no_grad;
  for (uint64_t i = 0; i < 12; ++i) {
    const at::Tensor tokens = at::tensor(ids, at::kInt).to(at::kLong).unsqueeze(0);
    const at::Tensor logits = model->logits(tokens).select(1, -1).contiguous();
    ids.push_back(id_at({logits.const_data_ptr<float>(), 50}, 20, uniform_of(7, i)));
  }
  EXPECT_EQ(generate(model, {7}, config), std::vector<int32_t>(ids.begin() + 1, ids.end()));
}

TEST(Generate, PenalizesRepetitionOfThePromptAndTheText) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  GenerateConfig config = greedy(20);
  config.repetition_penalty = 100;
  const std::vector<int32_t> prompt = {3, 1, 4};
  std::vector<int32_t> ids = prompt;
  at::NoGradGuard no_grad;
  for (int i = 0; i < 20; ++i) {
    const at::Tensor tokens = at::tensor(ids, at::kInt).to(at::kLong).unsqueeze(0);
    const at::Tensor logits = model->logits(tokens).select(1, -1).squeeze(0).clone();
    for (const int32_t id : std::set<int32_t>(ids.begin(), ids.end())) {
      const auto x = logits[id].item<float>();
      logits[id] = x > 0 ? x / 100 : x * 100;
    }
    ids.push_back(logits.argmax().item<int32_t>());
  }
  const std::vector<int32_t> text(ids.begin() + 3, ids.end());
  EXPECT_EQ(generate(model, prompt, config), text);
  EXPECT_NE(generate(model, prompt, greedy(20)), text);
}

TEST(Generate, NeverDrawsAPaddingId) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  // Weights of the padding rows are arbitrary: here they win every argmax.
  at::NoGradGuard no_grad;
  const at::Tensor head = model->head_weight();
  head.narrow(0, 40, 10).copy_(head.narrow(0, 0, 10) * 100);
  const auto largest = [](const std::vector<int32_t>& ids) {
    return *std::max_element(ids.begin(), ids.end());
  };
  EXPECT_GE(largest(generate(model, {7}, greedy(20))), 40);
  EXPECT_LT(largest(generate(model, {7}, greedy(20), {.vocab_size = 40})), 40);
  GenerateConfig sampled;
  sampled.max_tokens = 50;
  EXPECT_LT(largest(generate(model, {7}, sampled, {.vocab_size = 40})), 40);
  EXPECT_THROW(generate(model, {7}, greedy(1), {.vocab_size = 51}), ConfigError);
}

TEST(Generate, NamesThePositionOfLogitsThatAreNotFinite) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  at::NoGradGuard no_grad;
  model->head_weight()[3].fill_(NAN);
  try {
    generate(model, {7}, greedy(5));
    FAIL() << "NaN logits were sampled";
  } catch (const NonFiniteError& error) {
    EXPECT_NE(std::string(error.what()).find("generated token 1: the logit of id 3 is nan"),
              std::string::npos)
        << error.what();
  }
  EXPECT_EQ(generate(model, {7}, greedy(5), {.vocab_size = 3}).size(), 5u) << "padding is not read";
}

TEST(Generate, RefusesValuesThatAConfigRefuses) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  const auto refused = [&](auto change) {
    GenerateConfig config;
    config.max_tokens = 1;
    change(config);
    EXPECT_THROW(generate(model, {7}, config), ConfigError);
  };
  refused([](GenerateConfig& config) { config.max_tokens = 0; });
  refused([](GenerateConfig& config) { config.temperature = -1; });
  refused([](GenerateConfig& config) { config.temperature = NAN; });
  refused([](GenerateConfig& config) { config.top_k = -1; });
  refused([](GenerateConfig& config) { config.top_p = 0; });
  refused([](GenerateConfig& config) { config.top_p = 1.5; });
  refused([](GenerateConfig& config) { config.min_p = -0.1; });
  refused([](GenerateConfig& config) { config.min_p = NAN; });
  refused([](GenerateConfig& config) { config.min_p = 1.1; });
  refused([](GenerateConfig& config) { config.repetition_penalty = 0; });
  EXPECT_THROW(generate(model, {50}, greedy(1)), ConfigError) << "an id that the model lacks";
}

TEST(SampleToken, NamesTheFirstLogitThatIsNotFinite) {
  const at::Tensor logits = at::tensor({1.0f, 3.0f, 0.0f, 2.0f, NAN});
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    logits[2] = bad;
    for (const GenerateConfig& config : {greedy(1), GenerateConfig()}) {
      EXPECT_EQ(sample_token(logits, 2, greedy(1), 0), 1) << "padding is not read";
      try {
        sample_token(logits, 5, config, 0);
        FAIL() << bad;
      } catch (const NonFiniteError& error) {
        EXPECT_EQ(error.what(), std::isnan(bad) ? std::string("the logit of id 2 is nan")
                                                : "the logit of id 2 is inf");
      }
    }
  }
}

}  // namespace
}  // namespace stablemask
