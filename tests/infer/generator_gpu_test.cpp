#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "src/infer/decoding.h"
#include "stablemask/infer/generator.h"
#include "tests/infer/generator_texts.h"
#include "tests/nn/models.h"

/// Decoding on a GPU, by CUDA graphs and without.
namespace stablemask::infer {
namespace {

using testing::add_into;
using testing::expect_full_forward;
using testing::full_logprobs;
using testing::greedy;
using testing::run_all;
using testing::sampled;
using testing::Text;

class GpuGenerator : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

ModelConfig config_of(Position position, bool stable_mask, int64_t window = 0) {
  ModelConfig config = testing_models::tiny_config(position, stable_mask);
  config.channels = 128;
  config.heads = 2;
  config.head_dim = 64;
  config.ffn_hidden = 192;
  config.init_std = 0.08;
  config.window = window;
  return config;
}

nn::Transformer placed(const ModelConfig& config, at::Device device, at::ScalarType dtype) {
  nn::Transformer model = testing_models::tiny_model(config);
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : model->parameters()) {
    parameter.set_data(parameter.to(device, dtype));
  }
  model->to(device);
  return model;
}

std::vector<int32_t> prompt_of(int64_t length, int64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i)
    ids.push_back(static_cast<int32_t>((i * 7 + seed * 13) % 50));
  return ids;
}

/// Unequal prompts, lengths and settings.
std::vector<GenerateRequest> requests() {
  std::vector<GenerateRequest> all;
  for (int64_t i = 0; i < 9; ++i) {
    all.push_back(sampled(prompt_of(1 + 11 * (i % 4), i), 12 + 5 * i, i));
    all.back().logprobs = i % 3 - 1;
  }
  all[2].settings.top_k = 5;
  all[3].settings.top_p = 0.7;
  all[4].settings.repetition_penalty = 1.5;
  all[5].settings.temperature = 0;
  all[6].settings.min_p = 0.05;
  all[7].first_ids = {3, 4, 5};
  return all;
}

void expect_graphs_draw_what_plain_steps_draw(const ModelConfig& config, int64_t max_batch) {
  const nn::Transformer model = placed(config, at::kCUDA, at::kBFloat16);
  const std::vector<Text> plain = run_all(model, requests(), max_batch, false);
  const std::vector<Text> recorded = run_all(model, requests(), max_batch, true);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(recorded[i].ids(), plain[i].ids()) << i;
    ASSERT_EQ(recorded[i].tokens.size(), plain[i].tokens.size());
    for (size_t t = 0; t < plain[i].tokens.size(); ++t) {
      EXPECT_EQ(recorded[i].tokens[t].logprob, plain[i].tokens[t].logprob) << i << " " << t;
      EXPECT_EQ(recorded[i].tokens[t].top, plain[i].tokens[t].top) << i << " " << t;
    }
  }
}

ModelConfig config_of(const testing_models::Family& family) {
  ModelConfig config = config_of(Position::kRope, true);
  family.change(config);
  config.head_dim = 64;
  return config;
}

TEST_F(GpuGenerator, GraphsDrawWhatPlainStepsDraw) {
  for (const int64_t window : {0, 24}) {
    for (const int64_t max_batch : {1, 3, 8}) {
      expect_graphs_draw_what_plain_steps_draw(config_of(Position::kRope, true, window), max_batch);
    }
  }
  for (const testing_models::Family& family : testing_models::kFamilies) {
    SCOPED_TRACE(family.name);
    expect_graphs_draw_what_plain_steps_draw(config_of(family), 3);
  }
}

TEST_F(GpuGenerator, EqualsTheFullForward) {
  const auto check = [](const ModelConfig& config, at::ScalarType dtype, double tolerance) {
    const nn::Transformer model = placed(config, at::kCUDA, dtype);
    std::vector<GenerateRequest> all;
    for (const auto& [prompt, length] :
         {std::pair<int64_t, int64_t>{1, 60}, {33, 9}, {70, 30}, {5, 1}, {18, 40}, {40, 12}}) {
      all.push_back(greedy(prompt_of(prompt, length), length));
      all.back().logprobs = 2;
    }
    const std::vector<Text> texts = run_all(model, all, 4);
    for (size_t i = 0; i < texts.size(); ++i) {
      expect_full_forward(model, all[i], texts[i], tolerance);
    }
  };
  for (const Position position : {Position::kRope, Position::kAlibi}) {
    for (const bool stable_mask : {false, true}) {
      for (const int64_t window : {0, 24}) {
        ModelConfig config = config_of(position, stable_mask, window);
        check(config, at::kFloat, 2e-3);
        check(config, at::kBFloat16, 0.12);
        config.kv_heads = 1;
        config.stable_mask.learnable = stable_mask;
        check(config, at::kBFloat16, 0.12);
      }
    }
  }
  for (const testing_models::Family& family : testing_models::kFamilies) {
    SCOPED_TRACE(family.name);
    check(config_of(family), at::kFloat, 2e-3);
    check(config_of(family), at::kBFloat16, 0.12);
  }
}

TEST_F(GpuGenerator, DrawsWhatTheCpuDraws) {
  const ModelConfig config = config_of(Position::kRope, true);
  const std::vector<Text> cpu = run_all(placed(config, at::kCPU, at::kFloat), requests(), 3);
  const std::vector<Text> gpu = run_all(placed(config, at::kCUDA, at::kFloat), requests(), 3);
  for (size_t i = 0; i < cpu.size(); ++i) EXPECT_EQ(gpu[i].ids(), cpu[i].ids()) << i;
}

TEST_F(GpuGenerator, StepsAreRecordedForPowersOfTwo) {
  const nn::Transformer model = placed(config_of(Position::kRope, true), at::kCUDA, at::kBFloat16);
  const at::NoGradGuard no_grad;
  Scheduler scheduler(6);
  Decoding decoding(model, 6, 64, 50, true);
  for (int64_t i = 0; i < 6; ++i) scheduler.add(greedy({3}, 30));
  scheduler.begin();
  const std::vector<SequencePtr> all = scheduler.to_decode();
  const auto steps = [&](size_t count) {
    for (int64_t i = 0; i < 3; ++i) decoding.launch({all.begin(), all.begin() + count}).await();
  };
  for (const size_t count : {1, 2, 3, 4}) steps(count);
  EXPECT_EQ(decoding.graphs(), 3);  // for 1, 2 and 4
  for (const size_t count : {5, 6}) steps(count);
  EXPECT_EQ(decoding.graphs(), 4);  // not more than 6
}

TEST_F(GpuGenerator, NamesALogitThatIsNotFinite) {
  for (const int64_t window : {0, 4}) {
    nn::Transformer model =
        placed(config_of(Position::kRope, true, window), at::kCUDA, at::kBFloat16);
    const std::vector<int32_t> ids = run_all(model, {greedy({7}, 20)}, 1)[0].ids();
    const at::NoGradGuard no_grad;
    model->named_parameters()["embedding"][ids[8]].fill_(NAN);
    const size_t at = std::ranges::find(ids, ids[8]) - ids.begin();
    const Text text = run_all(model, {greedy({7}, 20), greedy({ids[8] == 1 ? 2 : 1}, 2)}, 2)[0];
    EXPECT_EQ(text.finish(), Finish::kNonFinite);
    EXPECT_EQ(text.tokens.size(), at + 1);
    const std::string what =
        "generated token " + std::to_string(at + 2) + ": the logit of id 0 is nan";
    EXPECT_EQ(text.outcomes.at(0).error.substr(0, what.size()), what);
  }
}

/// Memory and time of a token do not depend on how many were drawn before.
TEST_F(GpuGenerator, AWindowedTextOf100000TokensTakesConstantMemoryAndTime) {
  using Clock = std::chrono::steady_clock;
  const nn::Transformer model =
      placed(config_of(Position::kRope, true, 256), at::kCUDA, at::kBFloat16);
  constexpr int64_t kTokens = 100'000, kPart = 20'000;
  Generator generator(model, {.max_batch = 1, .capacity = kTokens + 1});
  const auto allocated = [] {
    return at::getDeviceAllocator(at::kCUDA)->getDeviceStats(0).allocated_bytes[0].current;
  };
  int64_t drawn = 0, early = 0;
  std::vector<Clock::time_point> times;
  GenerateRequest request = sampled({7}, kTokens, 1);
  request.emit = [&](const DrawnToken&) {
    if (drawn++ % kPart == 0) times.push_back(Clock::now());
    if (drawn == 1000) early = allocated();
    return true;
  };
  generator.add(request);
  while (drawn < kTokens - 10) ASSERT_TRUE(generator.step());
  EXPECT_EQ(allocated(), early);
  ASSERT_EQ(times.size(), 5u);
  EXPECT_LT((times[4] - times[3]) / 1.2, times[2] - times[1]);
  generator.run();
  EXPECT_EQ(drawn, kTokens);
}

}  // namespace
}  // namespace stablemask::infer
