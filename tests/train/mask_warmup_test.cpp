#include "src/train/mask_warmup.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/nn/models.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using testing::losses_of;
using testing::tensors_of;
using testing::train;
using testing::train_with_stops;
using testing_models::tiny_config;
using testing_models::tiny_model;

at::Tensor some_tokens() { return at::arange(24, at::kLong).view({2, 12}) * 7 % 50; }

at::Tensor logits_of(nn::Transformer& model) {
  const at::NoGradGuard no_grad;
  return model->logits(some_tokens());
}

/// Fixed or learnable, with the masks of a context and of an infinite length.
class MaskWarmupTest : public ::testing::TestWithParam<std::tuple<bool, bool>> {
 protected:
  static ModelConfig model_config(double p_base) {
    ModelConfig model = tiny_config(Position::kRope, true);
    model.stable_mask.p_base = {{p_base}};
    model.stable_mask.learnable = std::get<0>(GetParam());
    if (std::get<1>(GetParam()))
      model.stable_mask.mask_length.kind = MaskLengthSpec::Kind::kInfinite;
    return model;
  }
};

TEST_P(MaskWarmupTest, AddsTheLogOfTheShareOfItsStepsToPBase) {
  constexpr double kBase = 0.5;
  nn::Transformer ramped = tiny_model(model_config(kBase));
  MaskWarmup warmup(ramped, at::kCPU, 8, 0);
  nn::Transformer first = tiny_model(model_config(kBase + std::log(1.0 / 8)));
  EXPECT_TRUE(at::allclose(logits_of(ramped), logits_of(first), 1e-5, 1e-6)) << "before step 1";
  for (const int64_t step : {1, 3, 7}) {
    warmup.begin(step);
    nn::Transformer same =
        tiny_model(model_config(kBase + std::log(static_cast<double>(step) / 8)));
    EXPECT_TRUE(at::allclose(logits_of(ramped), logits_of(same), 1e-5, 1e-6)) << step;
  }
}

TEST_P(MaskWarmupTest, EndsWithTheBitsOfTheModelsOwnMask) {
  nn::Transformer ramped = tiny_model(model_config(0.3)), plain = tiny_model(model_config(0.3));
  MaskWarmup warmup(ramped, at::kCPU, 8, 0);
  warmup.begin(7);
  EXPECT_FALSE(logits_of(ramped).equal(logits_of(plain)));
  for (const int64_t step : {8, 9}) {
    warmup.begin(step);
    EXPECT_TRUE(logits_of(ramped).equal(logits_of(plain)));
  }
  const MaskWarmup resumed(ramped, at::kCPU, 8, 20);
  EXPECT_TRUE(logits_of(ramped).equal(logits_of(plain)));
}

INSTANTIATE_TEST_SUITE_P(All, MaskWarmupTest,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool()));

TEST(MaskWarmup, GradientsOfALearnableBaseAreThoseAtItsCurrentValue) {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.stable_mask.learnable = true;
  nn::Transformer ramped = tiny_model(config);
  config.stable_mask.p_base = {{std::log(0.25)}};
  nn::Transformer same = tiny_model(config);
  MaskWarmup warmup(ramped, at::kCPU, 8, 2);
  for (nn::Transformer* model : {&ramped, &same}) {
    (*model)->loss(some_tokens(), some_tokens().roll(-1, 1), 1.0).backward();
  }
  const auto expected = same->named_parameters();
  for (const auto& item : ramped->named_parameters()) {
    EXPECT_TRUE(at::allclose(item.value().grad(), expected[item.key()].grad(), 1e-4, 1e-6))
        << item.key();
  }
}

using MaskWarmupRun = testing::TinyRunTest;

TEST_F(MaskWarmupRun, BeginsWithALittleOfTheMaskAndResumesBitForBit) {
  Config run = config("whole");
  run.model.stable_mask.learnable = true;
  run.train.steps = 9;
  run.train.eval_every = 3;
  run.train.mask_warmup_steps = 6;
  Config stopped = run, little = run;
  train(run);
  stopped.train.out = folder_ / "stopped";
  train_with_stops(stopped, {2, 3, 7});
  EXPECT_EQ(losses_of(run.train.out), losses_of(stopped.train.out));
  EXPECT_EQ(tensors_of(run.train.out), tensors_of(stopped.train.out));
  std::vector<double> valid, valid_stopped;
  for (const auto& line : testing::metrics_of(run.train.out)) {
    if (line.contains("valid_loss")) valid.push_back(line["valid_loss"]);
  }
  for (const auto& line : testing::metrics_of(stopped.train.out)) {
    if (line.contains("valid_loss")) valid_stopped.push_back(line["valid_loss"]);
  }
  EXPECT_EQ(valid, valid_stopped);
  EXPECT_EQ(valid.size(), 3u);

  little.train.out = folder_ / "little";
  little.model.stable_mask.p_base = {{std::log(1.0 / 6)}};
  little.train.mask_warmup_steps = 0;
  little.train.steps = 1;
  train(little);
  EXPECT_NEAR(losses_of(little.train.out).front(), losses_of(run.train.out).front(), 1e-6);
}

}  // namespace
}  // namespace stablemask
