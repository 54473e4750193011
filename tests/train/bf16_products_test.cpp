// Training with bf16 products on the CPU.
#include <gtest/gtest.h>

#include <vector>

#include "stablemask/base/error.h"
#include "tests/train/steps.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using namespace testing_steps;

Config products_config(Precision precision = Precision::kBf16) {
  Config config;
  config.model = testing_models::tiny_config(Position::kRope, true);
  config.optimizer.clip_norm = 1.0;
  config.train.precision = precision;
  return config;
}

Batch products_batch(int64_t step) { return batch(8, 16, step); }

std::vector<double> losses_in(const Config& config, int64_t steps,
                              at::ScalarType type = at::kFloat) {
  TinyTraining run(config, at::kCPU, type);
  std::vector<double> losses;
  for (int64_t step = 1; step <= steps; ++step) {
    losses.push_back(run.step(split(products_batch(step), 2)).loss);
  }
  return losses;
}

TEST(Bf16Products, LearnAsFp32Does) {
  const std::vector<double> exact = losses_in(products_config(Precision::kDtype), 60);
  const std::vector<double> found = losses_in(products_config(), 60);
  EXPECT_NEAR(found[0], exact[0], 2e-3 * exact[0]);
  EXPECT_NE(found[0], exact[0]);
  EXPECT_NEAR(found.back(), exact.back(), 0.05);
  EXPECT_LT(found.back(), 0.4) << found[0] << " before training";
}

TEST(Bf16Products, GradientsAreThoseOfFp32ButForRounding) {
  TinyTraining exact(products_config(Precision::kDtype), at::kCPU, at::kFloat);
  TinyTraining found(products_config(), at::kCPU, at::kFloat);
  // Two micro-batches: products that write gradients and products that add to them.
  exact.step(split(products_batch(1), 2), 0.0);
  found.step(split(products_batch(1), 2), 0.0);
  const auto wanted = exact.model->named_parameters();
  for (const auto& parameter : found.model->named_parameters()) {
    const at::Tensor a = parameter.value().grad(), b = wanted[parameter.key()].grad();
    const double error = ((a - b).norm() / b.norm()).item<double>();
    EXPECT_LT(error, 0.02) << parameter.key();
    EXPECT_GT(error, 1e-5) << parameter.key();
  }
}

TEST(Bf16Products, ActivationCheckpointingGivesTheSameBits) {
  Config config = products_config();
  TinyTraining kept(config, at::kCPU, at::kFloat);
  config.train.activation_checkpointing = true;
  TinyTraining recomputed(config, at::kCPU, at::kFloat);
  for (int64_t step = 1; step <= 3; ++step) {
    const std::vector<Batch> batches = split(products_batch(step), 2);
    EXPECT_EQ(kept.step(batches).loss, recomputed.step(batches).loss);
  }
  EXPECT_TRUE(same_bits(kept.master(), recomputed.master()));
}

TEST(Bf16Products, AdaptersTrainWithThem) {
  Config config = products_config();
  config.model.lora.rank = 2;
  TinyTraining found(config, at::kCPU, at::kFloat);
  config.train.precision = Precision::kDtype;
  TinyTraining exact(config, at::kCPU, at::kFloat);
  for (int64_t step = 1; step <= 5; ++step) {
    const double loss = found.step({products_batch(step)}, 2e-3).loss;
    const double wanted = exact.step({products_batch(step)}, 2e-3).loss;
    EXPECT_NEAR(loss, wanted, 5e-3 * wanted);
    EXPECT_NE(loss, wanted);
  }
}

TEST(Bf16Products, ValidationBetweenStepsIsInFp32) {
  TinyTraining run(products_config(), at::kCPU, at::kFloat);
  const Batch held_out = products_batch(99);
  const at::Tensor ids = tensor_of(held_out, held_out.tokens),
                   targets = tensor_of(held_out, held_out.targets);
  run.step({products_batch(1)});
  TinyTraining exact(products_config(Precision::kDtype), at::kCPU, at::kFloat);
  for (const auto& [name, value] : run.master()) exact.flat->set_master(name, value);
  EXPECT_TRUE(run.model->token_nll(ids, targets).equal(exact.model->token_nll(ids, targets)));
  run.model->use_kernels(ops::Kernels::kFusedBf16);
  EXPECT_FALSE(run.model->token_nll(ids, targets).equal(exact.model->token_nll(ids, targets)));
}

TEST(Bf16Products, ChangeNothingOfARunInBf16) {
  EXPECT_EQ(losses_in(products_config(), 3, at::kBFloat16),
            losses_in(products_config(Precision::kDtype), 3, at::kBFloat16));
}

TEST(Bf16Products, AreNotForReferenceOps) {
  Config config = products_config();
  config.train.reference_ops = true;
  try {
    TinyTraining run(config, at::kCPU, at::kFloat);
    FAIL() << "bf16 products by the reference ops";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "/train/precision: \"bf16\" is not for train.reference_ops, which computes in "
                 "fp32");
  }
}

class Bf16ProductsRun : public testing::TinyRunTest {};

TEST_F(Bf16ProductsRun, ResumesWithTheSameBits) {
  const Config whole = config_in(Precision::kBf16, "whole"),
               stopped = config_in(Precision::kBf16, "stopped");
  testing::train(whole);
  testing::train_with_stops(stopped, {1, 5, 6});
  EXPECT_EQ(testing::losses_of(stopped.train.out), testing::losses_of(whole.train.out));
  EXPECT_EQ(testing::tensors_of(stopped.train.out), testing::tensors_of(whole.train.out));
}

}  // namespace
}  // namespace stablemask
