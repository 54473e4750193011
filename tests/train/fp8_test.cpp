// Steps with fp8 products, on the CPU.
#include <gtest/gtest.h>

#include "stablemask/base/error.h"
#include "tests/dist/threads.h"
#include "tests/train/steps.h"

namespace stablemask {
namespace {

using namespace testing_steps;

constexpr int64_t kFp8Rows = 8, kFp8Columns = 16;

Config fp8_config(Precision precision = Precision::kFp8) {
  Config config;
  config.model = testing_models::tiny_config(Position::kRope, true);
  config.model.ffn_hidden = 48;
  config.optimizer.clip_norm = 1.0;
  config.train.precision = precision;
  return config;
}

Batch fp8_batch(int64_t step) { return batch(kFp8Rows, kFp8Columns, step); }

at::Tensor history_of(const TinyTraining& run) { return run.model->fp8->state().at("history"); }

/// The losses of `steps` steps.
std::vector<double> losses_of_steps(const Config& config, int64_t steps) {
  TinyTraining run(config, at::kCPU, at::kFloat);
  std::vector<double> losses;
  for (int64_t step = 1; step <= steps; ++step) losses.push_back(run.step({fp8_batch(step)}).loss);
  return losses;
}

double mean_of_last(const std::vector<double>& values, size_t count) {
  double sum = 0;
  for (size_t i = values.size() - count; i < values.size(); ++i) sum += values[i];
  return sum / static_cast<double>(count);
}

TEST(Fp8Step, LearnsTheTaskAsFp32Does) {
  const std::vector<double> exact = losses_of_steps(fp8_config(Precision::kDtype), 60);
  Config config = fp8_config();
  for (const Fp8Gradients gradients : {Fp8Gradients::kE5M2, Fp8Gradients::kE4M3}) {
    config.train.fp8_gradients = gradients;
    const std::vector<double> found = losses_of_steps(config, 60);
    EXPECT_NEAR(found[0], exact[0], 0.02 * exact[0]);
    EXPECT_NE(found[0], exact[0]);
    EXPECT_NEAR(mean_of_last(found, 10), mean_of_last(exact, 10), 0.1);
    EXPECT_LT(mean_of_last(found, 10), 0.4) << "3.9 before training";
  }
}

TEST(Fp8Step, MicroBatchesAddUpToTheSameStep) {
  TinyTraining whole(fp8_config(), at::kCPU, at::kFloat), parts(fp8_config(), at::kCPU, at::kFloat);
  for (int64_t step = 1; step <= 4; ++step) {
    const auto one = whole.step({fp8_batch(step)}, 2e-3);
    const auto four = parts.step(split(fp8_batch(step), 4), 2e-3);
    EXPECT_NEAR(four.loss, one.loss, 0.01 * one.loss) << "step " << step;
    EXPECT_NEAR(four.grad_norm, one.grad_norm, 0.05 * one.grad_norm) << "step " << step;
  }
  EXPECT_LT(
      ((history_of(whole) - history_of(parts)).norm() / history_of(whole).norm()).item<double>(),
      0.1);
}

TEST(Fp8Step, ActivationCheckpointingGivesTheSameBits) {
  Config config = fp8_config();
  for (const int64_t frozen : {0, 1}) {
    config.train.freeze_layers = frozen;
    config.train.activation_checkpointing = false;
    TinyTraining kept(config, at::kCPU, at::kFloat);
    config.train.activation_checkpointing = true;
    TinyTraining recomputed(config, at::kCPU, at::kFloat);
    for (int64_t step = 1; step <= 3; ++step) {
      const std::vector<Batch> batches = split(fp8_batch(step), 2);
      const auto a = kept.step(batches), b = recomputed.step(batches);
      EXPECT_EQ(a.loss, b.loss);
      EXPECT_EQ(a.grad_norm, b.grad_norm);
    }
    EXPECT_TRUE(same_bits(kept.master(), recomputed.master())) << frozen << " frozen";
    EXPECT_TRUE(history_of(kept).equal(history_of(recomputed)));
  }
}

TEST(Fp8Step, ASkippedStepLeavesScalesAndHistoryAlone) {
  TinyTraining run(fp8_config(), at::kCPU, at::kFloat);
  run.poison();
  EXPECT_FALSE(run.step({poisoned(fp8_batch(1))}).updated);
  EXPECT_TRUE(run.model->fp8->just_in_time()) << "still without a history";
  EXPECT_TRUE(run.step({fp8_batch(1)}).updated);
  EXPECT_FALSE(run.model->fp8->just_in_time());
  const Weights before = copy(run.model->fp8->state());
  EXPECT_FALSE(run.step({poisoned(fp8_batch(2))}).updated);
  EXPECT_TRUE(same_bits(copy(run.model->fp8->state()), before));
  EXPECT_TRUE(run.step({fp8_batch(2)}).updated);
  EXPECT_FALSE(same_bits(copy(run.model->fp8->state()), before));
}

TEST(Fp8Step, CountsTensorsThatOutgrewTheirScale) {
  TinyTraining run(fp8_config(), at::kCPU, at::kFloat);
  EXPECT_EQ(run.step({fp8_batch(1)}).fp8_clipped, 0);
  for (const auto& [name, weight] : run.flat->named_weights()) {
    if (name == "blocks.0.attention.qkv") run.flat->set_master(name, weight * 32);
  }
  const auto clipped = run.step({fp8_batch(2)});
  EXPECT_TRUE(clipped.updated);
  EXPECT_GT(clipped.fp8_clipped, 0);
}

TEST(Fp8Step, ProcessesAgreeAndTrainAsOneDoes) {
  for (const ShardKind shard : {ShardKind::kOptimizer, ShardKind::kNone}) {
    Config config = fp8_config();
    config.train.shard = shard;
    const auto train = [&](int64_t processes) {
      std::vector<std::vector<double>> losses(processes);
      std::vector<Weights> scales(processes);
      testing::run_processes(processes, [&](const std::shared_ptr<dist::Group>& group) {
        TinyTraining run(config, at::kCPU, at::kFloat, group);
        for (int64_t step = 1; step <= 6; ++step) {
          const std::vector<Batch> all = split(fp8_batch(step), 4);
          std::vector<Batch> own;
          for (int64_t i = group->rank(); i < 4; i += group->size()) own.push_back(all[i]);
          losses[group->rank()].push_back(run.step(own, 2e-3).loss);
        }
        scales[group->rank()] = copy(run.model->fp8->state());
      });
      for (int64_t rank = 1; rank < processes; ++rank) {
        EXPECT_EQ(losses[rank], losses[0]);
        EXPECT_TRUE(same_bits(scales[rank], scales[0]));
      }
      return losses[0];
    };
    const std::vector<double> one = train(1), two = train(2);
    for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(two[i], one[i], 0.01 * one[i]) << i;
  }
}

/// A validation between two steps puts the averages in the place of the weights. It computes the
/// numbers of a model without fp8 products, and the steps none from the averages.
TEST(Fp8Step, ValidationsWithAveragesInBetweenChangeNoBit) {
  Config config = fp8_config();
  config.train.ema_decay = 0.5;
  TinyTraining plain(config, at::kCPU, at::kFloat), validated(config, at::kCPU, at::kFloat);
  TinyTraining exact(fp8_config(Precision::kDtype), at::kCPU, at::kFloat);
  const Batch held_out = fp8_batch(99);
  const at::Tensor ids = tensor_of(held_out, held_out.tokens),
                   targets = tensor_of(held_out, held_out.targets);
  for (int64_t step = 1; step <= 5; ++step) {
    const std::vector<Batch> batches = split(fp8_batch(step), 2);
    const auto a = plain.step(batches), b = validated.step(batches);
    EXPECT_EQ(a.loss, b.loss) << "step " << step;
    EXPECT_EQ(a.grad_norm, b.grad_norm) << "step " << step;
    const Weights averages = validated.averages();
    EXPECT_FALSE(same_bits(averages, validated.master()));
    for (const auto& [name, value] : averages) exact.flat->set_master(name, value);
    const auto in_use = validated.program.use_averages();
    EXPECT_TRUE(
        validated.model->token_nll(ids, targets).equal(exact.model->token_nll(ids, targets)));
  }
  EXPECT_TRUE(same_bits(plain.master(), validated.master()));
  EXPECT_TRUE(same_bits(plain.averages(), validated.averages()));
  EXPECT_TRUE(same_bits(copy(plain.model->fp8->state()), copy(validated.model->fp8->state())));
}

TEST(Fp8Step, WithoutFp8NothingIsPrepared) {
  TinyTraining run(fp8_config(Precision::kDtype), at::kCPU, at::kFloat);
  EXPECT_EQ(run.model->fp8, nullptr);
  EXPECT_EQ(run.step({fp8_batch(1)}).fp8_clipped, 0);
}

}  // namespace
}  // namespace stablemask
