// What Trainer offers to a program that embeds it.
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <memory>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/dist/group.h"
#include "stablemask/nn/model.h"
#include "stablemask/optim/optimizer.h"
#include "stablemask/train/trainer.h"
#include "tests/dist/lone_group.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using testing::losses_of;
using testing::quiet_options;
using testing::stop_after;
using testing::tensors_of;
using testing::train;

class EmbeddedTrainer : public testing::TinyRunTest {};

TEST_F(EmbeddedTrainer, CallbacksSeeTheMetricsAndStopTheRun) {
  Config config = this->config("callbacks");
  config.train.log_every = 2;
  config.train.eval_every = 4;
  std::vector<std::string> calls;
  RunOptions options = quiet_options();
  options.on_step = [&](const StepMetrics& metrics) {
    EXPECT_FALSE(metrics.valid_loss);
    calls.push_back("step " + std::to_string(metrics.step));
    return metrics.step < 5;
  };
  options.on_record = [&](const StepMetrics& metrics) {
    EXPECT_EQ(metrics.valid_loss.has_value(), metrics.step == 4);
    calls.push_back("record " + std::to_string(metrics.step));
    return true;
  };
  const RunResult stopped = train(config, options);
  EXPECT_EQ(calls, (std::vector<std::string>{"step 1", "step 2", "record 2", "step 3", "step 4",
                                             "record 4", "step 5"}));
  EXPECT_EQ(stopped.step, 5);
  EXPECT_EQ(stopped.signal, 0);
  EXPECT_FALSE(stopped.finished);
  EXPECT_EQ(load_checkpoint(stopped.checkpoint).step, 5);
  options.on_step = {};
  options.on_record = [&](const StepMetrics& metrics) { return !metrics.valid_loss; };
  EXPECT_EQ(train(config, options).step, 8) << "stopped by the callback of the validation";
}

struct CountingSink final : MetricsSink {
  void cut_after(int64_t step) override { cuts.push_back(step); }
  void record(const StepMetrics& metrics) override { steps.push_back(metrics.step); }
  void sync() override { ++syncs; }
  std::vector<int64_t> cuts, steps;
  int syncs = 0;
};

TEST_F(EmbeddedTrainer, FurtherSinksGetWhatTheMetricsFileGets) {
  Config config = this->config("sinks");
  config.train.steps = 3;
  const auto sink = std::make_shared<CountingSink>();
  RunOptions options = quiet_options();
  options.sinks = {sink};
  train(config, options);
  config.train.steps = 5;
  train(config, options);
  EXPECT_EQ(sink->cuts, (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(sink->steps, (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(sink->syncs, 2);
}

TEST_F(EmbeddedTrainer, TrainedModelOutlivesTheTrainer) {
  const Config config = this->config("model");
  nn::Transformer model{nullptr};
  {
    Trainer trainer(config, quiet_options());
    trainer.run();
    model = trainer.model();
  }
  const auto saved = tensors_of(config.train.out);
  for (const auto& item : model->named_parameters()) {
    const at::Tensor host = item.value().detach().contiguous();
    const std::string bytes(static_cast<const char*>(host.const_data_ptr()), host.nbytes());
    EXPECT_TRUE(bytes == saved.at(item.key())) << item.key();
  }
  EXPECT_EQ(model->logits(at::zeros({1, 4}, at::kLong)).sizes(), (at::IntArrayRef{1, 4, 400}));
}

/// A process alone, which counts what is asked of its group.
struct CountingGroup final : LoneGroup {
  void all_reduce(const at::Tensor&, dist::Reduce) override { ++reductions; }
  int64_t agree(int64_t decision) override {
    ++agreements;
    return std::max(decision, std::exchange(other, INT64_MIN));
  }
  int reductions = 0, agreements = 0;
  int64_t other = INT64_MIN;  ///< decision of an imagined second process, at the next call
};

TEST_F(EmbeddedTrainer, DecisionsAreAgreedBetweenTheProcesses) {
  Config config = this->config("group");
  config.train.steps = 4;
  config.train.save_every = 2;
  config.train.log_every = 4;
  const auto group = std::make_shared<CountingGroup>();
  RunOptions options = quiet_options();
  options.group = group;
  EXPECT_TRUE(train(config, options).finished);
  // A decision before each step and at the end, two forward passes of the validation, the peak
  // memory of one line, two saves.
  EXPECT_EQ(group->agreements, 5 + 2 + 1 + 2);
  EXPECT_EQ(group->reductions, 4) << "targets of each step";

  config.train.out = folder_ / "group-stopped";
  options.on_step = [&](const StepMetrics& metrics) {
    if (metrics.step == 3) group->other = 3 + SIGTERM;  // the other process received a signal
    return true;
  };
  const RunResult stopped = train(config, options);
  EXPECT_EQ(stopped.step, 3);
  EXPECT_EQ(stopped.signal, SIGTERM);
  EXPECT_EQ(load_checkpoint(stopped.checkpoint).step, 3);
}

/// SGD with momentum 0.9, registered nowhere.
class TestSgd final : public Optimizer {
 public:
  explicit TestSgd(std::shared_ptr<FlatParameters> flat)
      : flat_(std::move(flat)), momentum_(at::zeros_like(flat_->gradients())) {}
  void update(FlatRange range, const at::Tensor& control) override {
    const auto part = [&](const at::Tensor& all) {
      return all.narrow(0, range.begin, range.end - range.begin);
    };
    const double lr = control[0].item<double>(), scale = control[2].item<double>();
    part(momentum_).mul_(0.9).add_(part(flat_->gradients()), scale);
    part(flat_->weights()).sub_(part(momentum_), lr);
  }
  std::map<std::string, Buffer> buffers() const override { return {{"momentum", {momentum_}}}; }

 private:
  std::shared_ptr<FlatParameters> flat_;
  at::Tensor momentum_;
};

TEST_F(EmbeddedTrainer, AnotherOptimizerTrainsAndResumesBitForBit) {
  RunOptions options = quiet_options();
  options.make_optimizer = [](const OptimizerConfig&, std::shared_ptr<FlatParameters> flat,
                              ops::Kernels) { return std::make_unique<TestSgd>(std::move(flat)); };
  Config straight = config("sgd"), stopped = config("sgd-stopped");
  straight.optimizer.lr = stopped.optimizer.lr = 0.5;
  train(straight, options);
  const std::vector<double> losses = losses_of(straight.train.out);
  EXPECT_LT(losses.back(), losses.front() - 0.2);
  options.on_step = stop_after(5, SIGTERM);
  EXPECT_EQ(train(stopped, options).step, 5);
  options.on_step = {};
  EXPECT_TRUE(train(stopped, options).finished);
  EXPECT_EQ(losses_of(stopped.train.out), losses);
  const auto tensors = tensors_of(straight.train.out);
  EXPECT_EQ(tensors_of(stopped.train.out), tensors);
  EXPECT_EQ(tensors.count("momentum.embedding"), 1u);
  EXPECT_EQ(tensors.count("m.embedding"), 0u);
  // AdamW cannot go on from it.
  stopped.train.steps = 14;
  EXPECT_THROW(train(stopped), CheckpointError);
}

/// A config made in code, with fields that load_config would have resolved.
TEST_F(EmbeddedTrainer, ConfigNeedsNotBeResolved) {
  Config resolved = config("resolved"), made = config("made");
  resolved.train.micro_batch = resolved.train.batch;
  resolved.eval.window = resolved.train.context;
  made.train.micro_batch = 0;
  made.eval.window = 0;
  EXPECT_EQ(train(made).valid_loss, train(resolved).valid_loss);
  EXPECT_EQ(losses_of(made.train.out), losses_of(resolved.train.out));
}

}  // namespace
}  // namespace stablemask
