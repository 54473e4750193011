#include "stablemask/optim/weight_average.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

#include "stablemask/ops/optimizer.h"
#include "tests/train/steps.h"

namespace stablemask {
namespace {

using testing_steps::TinyTraining;
using testing_steps::Weights;

constexpr double kAverageDecay = 0.6;

Config averaged_config() {
  Config config;
  config.model = testing_models::tiny_config(Position::kRope, true);
  config.train.ema_decay = kAverageDecay;
  return config;
}

std::vector<Batch> batches_of_step(int64_t step) { return {testing_steps::batch(4, 16, step)}; }

/// The rounding of a checkpoint's weights in the compute dtype.
at::Tensor rounded_to(at::ScalarType type, const at::Tensor& value) {
  return type == at::kFloat ? value : ops::split_weights(value).rounded;
}

TEST(WeightAverage, FollowsTheStepsByTheFormula) {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    TinyTraining run(averaged_config(), at::kCPU, compute);
    std::map<std::string, at::Tensor> want;
    for (const auto& [name, value] : run.master()) want[name] = value.to(at::kDouble);
    EXPECT_TRUE(testing_steps::same_bits(run.averages(), run.master())) << "where it starts";
    for (int64_t step = 1; step <= 20; ++step) {
      run.step(batches_of_step(step));
      const auto t = static_cast<double>(step);
      const double d = std::min(kAverageDecay, (1 + t) / (10 + t));
      for (const auto& [name, value] : run.master()) want[name].mul_(d).add_(value, 1 - d);
    }
    for (const auto& [name, value] : run.averages()) {
      const double error = (value - want.at(name)).norm().item<double>();
      EXPECT_LT(error, 3e-7 * want.at(name).norm().item<double>()) << name;
    }
    EXPECT_FALSE(testing_steps::same_bits(run.averages(), run.master()));
  }
}

TEST(WeightAverage, SkippedStepLeavesItAlone) {
  TinyTraining run(averaged_config(), at::kCPU, at::kFloat);
  run.step(batches_of_step(1));
  run.poison();
  const Weights before = run.averages();
  EXPECT_FALSE(run.step({testing_steps::poisoned(testing_steps::batch(4, 16, 2))}).updated);
  EXPECT_TRUE(testing_steps::same_bits(run.averages(), before));
  run.step(batches_of_step(3));
  EXPECT_FALSE(testing_steps::same_bits(run.averages(), before));
}

TEST(WeightAverage, TrainsTheSameWeightsAsWithout) {
  Config config = averaged_config();
  TinyTraining with(config, at::kCPU, at::kBFloat16);
  config.train.ema_decay = 0;
  TinyTraining without(config, at::kCPU, at::kBFloat16);
  EXPECT_TRUE(without.averages().empty());
  EXPECT_EQ(without.program.use_averages(), nullptr);
  for (int64_t step = 1; step <= 3; ++step) {
    for (TinyTraining* run : {&with, &without}) run->step(batches_of_step(step));
  }
  EXPECT_TRUE(testing_steps::same_bits(with.master(), without.master()));
}

TEST(WeightAverage, ModelHasItForATimeAndThenItsBitsAgain) {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    Config config = averaged_config();
    config.train.freeze_layers = 1;
    TinyTraining run(config, at::kCPU, compute);
    for (int64_t step = 1; step <= 4; ++step) run.step(batches_of_step(step));
    const Weights before = run.master(),
                  model_before = testing_steps::copy(run.flat->named_weights());
    const Weights averages = run.averages();
    const auto look = [&] {
      const std::unique_ptr<AveragedWeights> in_use = run.program.use_averages();
      for (const auto& item : run.model->named_parameters()) {
        const auto average = averages.find(item.key());
        const at::Tensor wanted = average == averages.end() ? model_before.at(item.key())
                                                            : rounded_to(compute, average->second);
        EXPECT_TRUE(item.value().equal(wanted)) << item.key();
      }
      throw std::runtime_error("a validation that fails");
    };
    EXPECT_LT(averages.size(), model_before.size()) << "frozen parameters have none";
    EXPECT_THROW(look(), std::runtime_error);
    EXPECT_TRUE(
        testing_steps::same_bits(testing_steps::copy(run.flat->named_weights()), model_before));
    EXPECT_TRUE(testing_steps::same_bits(run.master(), before));
    EXPECT_TRUE(testing_steps::same_bits(run.averages(), averages));
  }
}

}  // namespace
}  // namespace stablemask
