// What StableMask adds to RoPE and ALiBi: the absolute position, visible on constant input.
#include <gtest/gtest.h>

#include <cmath>

#include "stablemask/ops/optimizer.h"
#include "stablemask/optim/optimizer.h"
#include "stablemask/train/schedule.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::max_difference;
using testing_models::tiny_config;
using testing_models::tiny_model;

constexpr int64_t kLength = 16;

class ConstantInput : public ::testing::TestWithParam<Position> {};

TEST_P(ConstantInput, CausalOutputsAreEqualAtEveryPosition) {
  nn::Transformer model = tiny_model(tiny_config(GetParam(), /*stable_mask=*/false));
  at::NoGradGuard no_grad;
  const at::Tensor logits = model->logits(at::full({1, kLength}, 7, at::kLong));
  EXPECT_LT(max_difference(logits, logits.narrow(1, 0, 1)), 1e-4);
}

TEST_P(ConstantInput, StableMaskOutputsDifferAtEveryPosition) {
  nn::Transformer model = tiny_model(tiny_config(GetParam(), /*stable_mask=*/true));
  at::NoGradGuard no_grad;
  const at::Tensor logits = model->logits(at::full({1, kLength}, 7, at::kLong));
  for (int64_t i = 1; i < kLength; ++i) {
    EXPECT_GT(max_difference(logits.select(1, i), logits.select(1, i - 1)), 1e-3) << i;
  }
}

/// Trains "emit your own position" on constant input; returns the final loss, nats per token.
double learn_positions(Position position, bool stable_mask) {
  ModelConfig config = tiny_config(position, stable_mask, kLength + 1);
  config.stable_mask.gamma = {GammaSpec::Kind::kValue, {{0.0, 0.1, 0.5, 1.0}}};
  config.init_std = 0.02;
  nn::Transformer model = tiny_model(config);
  const auto flat = std::make_shared<FlatParameters>(model, at::kCPU, at::kFloat);
  const at::Tensor tokens = at::full({1, kLength}, 7, at::kLong);
  const at::Tensor targets = at::arange(kLength, at::kLong).unsqueeze(0);
  OptimizerConfig config_of_optimizer;
  config_of_optimizer.weight_decay = 0;
  const auto optimizer = make_optimizer(config_of_optimizer, flat);
  ScheduleConfig schedule;
  schedule.warmup_steps = 20;
  constexpr int64_t kSteps = 600;
  double loss = 0;
  for (int64_t step = 1; step <= kSteps; ++step) {
    flat->zero_gradients();
    const at::Tensor value = model->loss(tokens, targets, 1.0 / kLength);
    value.backward();
    at::Tensor control = ops::update_control(learning_rate(schedule, 1e-2, step, kSteps), step);
    ops::set_grad_scale_(control, value, flat->grad_norm(), /*limit=*/1.0);
    optimizer->update({0, flat->size()}, control);
    loss = value.item<double>();
  }
  return loss;
}

TEST_P(ConstantInput, OnlyStableMaskLearnsToEmitThePosition) {
  const double chance = std::log(static_cast<double>(kLength));
  EXPECT_LT(learn_positions(GetParam(), /*stable_mask=*/true), 0.1);
  EXPECT_GT(learn_positions(GetParam(), /*stable_mask=*/false), chance - 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Position, ConstantInput,
                         ::testing::Values(Position::kRope, Position::kAlibi),
                         [](const auto& info) {
                           return info.param == Position::kRope ? "Rope" : "Alibi";
                         });

}  // namespace
}  // namespace stablemask
