#include "stablemask/train/step.h"

#include <gtest/gtest.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <stdexcept>

#include "tests/dist/lone_group.h"
#include "tests/train/steps.h"

namespace stablemask {
namespace {

using testing_models::tiny_config;
using testing_models::tiny_model;
using namespace testing_steps;

constexpr int64_t kRows = 8, kColumns = 16;

Config step_config(bool learnable = true) {
  Config config;
  config.model = tiny_config(Position::kRope, true);
  config.model.stable_mask.learnable = learnable;
  config.optimizer.clip_norm = 0.5;  // below the norms of the first steps
  return config;
}

/// The step as one writes it with LibTorch alone.
struct HandWritten {
  explicit HandWritten(const Config& config_in)
      : config(config_in), model(tiny_model(config.model)) {
    std::vector<at::Tensor> decay, keep;
    for (const auto& item : model->named_parameters()) {
      (item.value().dim() >= 2 ? decay : keep).push_back(item.value());
    }
    const auto options = [&](double weight_decay) {
      const OptimizerConfig& ours = config.optimizer;
      return std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(ours.lr)
                                                              .betas({ours.beta1, ours.beta2})
                                                              .eps(ours.eps)
                                                              .weight_decay(weight_decay));
    };
    using Group = torch::optim::OptimizerParamGroup;
    std::vector<Group> groups;
    groups.emplace_back(decay, options(config.optimizer.weight_decay));
    groups.emplace_back(keep, options(0.0));
    optimizer = std::make_unique<torch::optim::AdamW>(
        groups, torch::optim::AdamWOptions(config.optimizer.lr));
  }

  StepProgram::Result step(const Batch& batch, double lr) {
    for (auto& group : optimizer->param_groups()) {
      static_cast<torch::optim::AdamWOptions&>(group.options()).lr(lr);
    }
    optimizer->zero_grad();
    const at::Tensor logits = model->logits(tensor_of(batch, batch.tokens)).flatten(0, 1);
    const at::Tensor targets = tensor_of(batch, batch.targets).flatten();
    const at::Tensor loss = at::cross_entropy_loss(logits, targets);
    loss.backward();
    const double norm =
        torch::nn::utils::clip_grad_norm_(model->parameters(), config.optimizer.clip_norm);
    optimizer->step();
    return {loss.item<double>(), norm, true, batch.valid_targets};
  }

  Config config;
  nn::Transformer model;
  std::unique_ptr<torch::optim::AdamW> optimizer;
};

TEST(StepProgram, EqualsTheStepWrittenWithLibTorch) {
  const Config config = step_config();
  TinyTraining ours(config, at::kCPU, at::kFloat);
  HandWritten theirs(config);
  const Weights start = ours.master();
  for (int64_t step = 1; step <= 6; ++step) {
    const Batch batch = testing_steps::batch(kRows, kColumns, step);
    const double lr = 2e-3 * static_cast<double>(step);
    const StepProgram::Result found = ours.step({batch}, lr), wanted = theirs.step(batch, lr);
    EXPECT_TRUE(found.updated);
    EXPECT_NEAR(found.loss, wanted.loss, 2e-5 * wanted.loss) << "step " << step;
    EXPECT_NEAR(found.grad_norm, wanted.grad_norm, 2e-4 * wanted.grad_norm) << "step " << step;
    EXPECT_GT(found.grad_norm, config.optimizer.clip_norm) << "the clip is to be tested";
  }
  Weights expected;
  for (const auto& item : theirs.model->named_parameters()) {
    expected[item.key()] = item.value().detach();
  }
  EXPECT_LT(relative_distance(ours.master(), expected, start), 1e-3);
}

TEST(StepProgram, Bf16StateTrainsAsWellAsFp32) {
  Config config = step_config();
  constexpr int64_t kSteps = 200, kTail = 50;
  const auto losses = [&](StateDtype state, int64_t seed) {
    config.optimizer.state = state;
    config.train.seed = seed;
    TinyTraining run(config, at::kCPU, at::kFloat);
    double sum = 0;
    for (int64_t step = 1; step <= kSteps; ++step) {
      const double loss = run.step({batch(kRows, kColumns, step)}, 2e-3).loss;
      if (step > kSteps - kTail) sum += loss;
    }
    return sum / kTail;
  };
  const double fp32 = losses(StateDtype::kFp32, 1);
  for (const int64_t seed : {1, 2}) {
    const double bf16 = losses(StateDtype::kBf16, seed);
    EXPECT_NEAR(bf16, fp32, 0.01 * fp32) << "seed " << seed;
    EXPECT_NE(bf16, fp32);
  }
}

TEST(StepProgram, MicroBatchesAddUpToTheSameStep) {
  const Config config = step_config();
  TinyTraining whole(config, at::kCPU, at::kFloat), halves(config, at::kCPU, at::kFloat),
      quarters(config, at::kCPU, at::kFloat);
  const Weights start = whole.master();
  for (int64_t step = 1; step <= 3; ++step) {
    const Batch batch = testing_steps::batch(kRows, kColumns, step);
    const StepProgram::Result one = whole.step({batch});
    for (const auto& other : {halves.step(split(batch, 2)), quarters.step(split(batch, 4))}) {
      EXPECT_NEAR(other.loss, one.loss, 1e-5 * one.loss) << "step " << step;
      EXPECT_NEAR(other.grad_norm, one.grad_norm, 1e-4 * one.grad_norm) << "step " << step;
    }
  }
  EXPECT_LT(relative_distance(whole.master(), halves.master(), start), 1e-3);
  EXPECT_LT(relative_distance(whole.master(), quarters.master(), start), 1e-3);
}

TEST(StepProgram, LossIsTheMeanOverTheTargetsOfAllMicroBatches) {
  TinyTraining whole(step_config(), at::kCPU, at::kFloat),
      parts(step_config(), at::kCPU, at::kFloat);
  Batch batch = testing_steps::batch(kRows, kColumns, 1);
  // The first half loses most of its targets: a mean of means would weigh it too much.
  for (int64_t i = 0; i < 50; ++i) batch.targets[i] = kIgnoreTarget;
  batch.valid_targets -= 50;
  std::vector<Batch> halves = split(batch, 2);
  halves[0].valid_targets -= 50;
  const StepProgram::Result one = whole.step({batch}), two = parts.step(halves);
  EXPECT_NEAR(one.loss, two.loss, 1e-5 * one.loss);
  EXPECT_NEAR(one.grad_norm, two.grad_norm, 1e-4 * one.grad_norm);
}

TEST(StepProgram, ReferenceOpsTrainAlike) {
  for (const bool tied : {false, true}) {
    Config config = step_config();
    config.model.tied_head = tied;
    const auto train = [&] {
      TinyTraining run(config, at::kCPU, at::kFloat);
      for (int64_t step = 1; step <= 3; ++step) {
        run.step(split(batch(kRows, kColumns, step), 2), 2e-3);
      }
      return run.master();
    };
    const Weights start = TinyTraining(config, at::kCPU, at::kFloat).master(), fused = train();
    config.train.reference_ops = true;
    const Weights reference = train();
    EXPECT_LT(relative_distance(fused, reference, start), 1e-3);
    EXPECT_FALSE(same_bits(fused, reference)) << "sums in another order: another path ran";
  }
}

TEST(StepProgram, NonFiniteLossLeavesEveryBitAlone) {
  TinyTraining run(step_config(), at::kCPU, at::kFloat);
  run.step({batch(kRows, kColumns, 1)});
  run.poison();
  const Weights master = run.master(), moments = run.moments();
  const StepProgram::Result bad =
      run.step(split(poisoned(testing_steps::batch(kRows, kColumns, 2)), 2));
  EXPECT_FALSE(bad.updated);
  EXPECT_FALSE(std::isfinite(bad.loss));
  EXPECT_TRUE(same_bits(run.master(), master));
  EXPECT_TRUE(same_bits(run.moments(), moments));

  const StepProgram::Result good = run.step({batch(kRows, kColumns, 3)});
  EXPECT_TRUE(good.updated);
  EXPECT_FALSE(same_bits(run.moments(), moments));
  EXPECT_FALSE(run.program.uses_graph());
}

/// Two processes with equal batches: every sum doubles.
struct Doubling final : LoneGroup {
  int64_t size() const override { return 2; }
  void all_reduce(const at::Tensor& tensor, dist::Reduce op) override {
    if (op == dist::Reduce::kSum) at::Tensor(tensor).mul_(2);
    ++reductions;
  }
  void reduce_scatter(const at::Tensor&, dist::Reduce) override { ADD_FAILURE(); }
  void all_gather(const at::Tensor&) override { ADD_FAILURE(); }
  void broadcast(const at::Tensor&, int64_t) override { ADD_FAILURE(); }
  int reductions = 0;
};

TEST(StepProgram, SumsTargetsGradientsAndLossOverTheProcesses) {
  const auto group = std::make_shared<Doubling>();
  Config config = step_config();
  config.train.shard = ShardKind::kNone;
  TinyTraining one(config, at::kCPU, at::kFloat), two(config, at::kCPU, at::kFloat, group);
  const Weights start = one.master();
  for (int64_t step = 1; step <= 2; ++step) {
    const Batch batch = testing_steps::batch(kRows, kColumns, step);
    const StepProgram::Result alone = one.step({batch}), both = two.step({batch});
    EXPECT_EQ(both.valid_targets, 2 * alone.valid_targets);
    EXPECT_NEAR(both.loss, alone.loss, 1e-6 * alone.loss);
    EXPECT_NEAR(both.grad_norm, alone.grad_norm, 1e-5 * alone.grad_norm);
  }
  // Targets, five buckets (head, two blocks, embedding, vectors), loss.
  EXPECT_EQ(group->reductions, 2 * (1 + 5 + 1));
  EXPECT_LT(relative_distance(one.master(), two.master(), start), 1e-3);
}

/// Fails while it updates.
struct BrokenOptimizer final : Optimizer {
  void update(FlatRange, const at::Tensor&) override { throw std::runtime_error("broken"); }
  std::map<std::string, Buffer> buffers() const override { return {}; }
};

/// Fails at a reduction, when asked to.
struct BrokenGroup final : LoneGroup {
  void all_reduce(const at::Tensor&, dist::Reduce) override {
    if (broken) throw std::runtime_error("broken");
  }
  bool broken = false;
};

TEST(StepProgram, TellsWhetherAFailedStepLeftTheWeightsUnchanged) {
  const auto group = std::make_shared<BrokenGroup>();
  TinyTraining run(step_config(), at::kCPU, at::kFloat, group);
  run.step({batch(kRows, kColumns, 1)});
  const Weights master = run.master();
  group->broken = true;
  EXPECT_THROW(run.step({batch(kRows, kColumns, 2)}), std::runtime_error);
  EXPECT_TRUE(run.program.unchanged_after_failure());
  EXPECT_TRUE(same_bits(run.master(), master));
  group->broken = false;
  EXPECT_TRUE(run.step({batch(kRows, kColumns, 2)}).updated);

  StepProgram broken(run.model, run.flat, std::make_shared<BrokenOptimizer>(),
                     step_options(step_config()));
  EXPECT_THROW(broken.run({batch(kRows, kColumns, 3)}, 1e-2, 1), std::runtime_error);
  EXPECT_FALSE(broken.unchanged_after_failure());
}

TEST(StepProgram, ActivationCheckpointingGivesTheSameBits) {
  for (const int64_t frozen : {0, 1}) {
    Config config = step_config();
    config.train.freeze_layers = frozen;
    TinyTraining kept(config, at::kCPU, at::kFloat);
    config.train.activation_checkpointing = true;
    TinyTraining recomputed(config, at::kCPU, at::kFloat);
    for (int64_t step = 1; step <= 3; ++step) {
      const std::vector<Batch> batches = split(batch(kRows, kColumns, step), 2);
      const StepProgram::Result a = kept.step(batches), b = recomputed.step(batches);
      EXPECT_EQ(a.loss, b.loss);
      EXPECT_EQ(a.grad_norm, b.grad_norm);
    }
    EXPECT_TRUE(same_bits(kept.master(), recomputed.master())) << frozen << " frozen";
  }
}

TEST(StepProgram, LearnsTheTask) {
  Config config = step_config(/*learnable=*/false);
  config.optimizer.clip_norm = 1.0;
  TinyTraining run(config, at::kCPU, at::kFloat);
  const double first = run.step({batch(kRows, kColumns, 1)}).loss;
  double last = first;
  for (int64_t step = 2; step <= 60; ++step) last = run.step({batch(kRows, kColumns, step)}).loss;
  EXPECT_GT(first, 3.0);
  EXPECT_LT(last, 0.3);
}

}  // namespace
}  // namespace stablemask
