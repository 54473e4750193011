#include "stablemask/train/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <optional>

#include "stablemask/base/error.h"
#include "stablemask/data/loader.h"
#include "stablemask/infer/evaluate.h"
#include "tests/io/file_size_limit.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::losses_of;
using testing::metrics_of;
using testing::quiet_options;
using testing::stop_after;
using testing::tensors_of;
using testing::TinyCorpus;
using testing::train;

class TrainerTest : public testing::TinyRunTest {
 protected:
  static void SetUpTestSuite() { corpus_ = new TinyCorpus("A snowman \u2603 stands here once ."); }
};

TEST_F(TrainerTest, LearnsMoreThanWordFrequencies) {
  Config config = this->config("run");
  config.train.steps = 80;
  const RunResult result = train(config);
  EXPECT_TRUE(result.finished);
  EXPECT_EQ(result.step, 80);
  const std::vector<json> lines = metrics_of(config.train.out);
  ASSERT_EQ(lines.size(), 80u);
  // Small weights at the start: almost the uniform distribution.
  EXPECT_NEAR(lines[0]["loss"].get<double>(), std::log(400.0), 0.1);
  EXPECT_EQ(lines[79]["tokens"], 80 * 8 * 16);
  EXPECT_EQ(lines[79]["valid_loss"].get<double>(), result.valid_loss);

  const Shard train_shard = Shard::open(corpus_->train), valid_shard = Shard::open(corpus_->valid);
  const double unigram = std::log(unigram_baseline(train_shard, valid_shard).token());
  EXPECT_LT(result.valid_loss, 0.7 * unigram);
  EXPECT_LT(result.last_loss, 0.7 * unigram);
}

TEST_F(TrainerTest, MeanLossIsThatOfTheStepsSinceTheLineBefore) {
  Config every = config("every"), some = config("some");
  every.train.steps = some.train.steps = 10;
  some.train.log_every = 4;
  train(every);
  train(some);
  const std::vector<double> losses = losses_of(every.train.out);
  const auto mean = [&](size_t begin, size_t end) {
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += losses[i];
    return sum / static_cast<double>(end - begin);
  };
  for (const json& line : metrics_of(every.train.out)) {
    EXPECT_DOUBLE_EQ(line["loss_mean"].get<double>(), line["loss"].get<double>());
  }
  const std::vector<json> lines = metrics_of(some.train.out);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_DOUBLE_EQ(lines[0]["loss_mean"].get<double>(), mean(0, 4));
  EXPECT_DOUBLE_EQ(lines[1]["loss_mean"].get<double>(), mean(4, 8));
  EXPECT_DOUBLE_EQ(lines[2]["loss_mean"].get<double>(), mean(8, 10));
  EXPECT_EQ(lines[1]["loss"].get<double>(), losses[7]);
}

TEST_F(TrainerTest, SplittingABatchIntoMicroBatchesChangesNothing) {
  for (const bool documents : {false, true}) {
    std::vector<std::vector<double>> losses;
    for (const int64_t micro_batch : {8, 4, 2}) {
      Config config =
          this->config("split" + std::to_string(micro_batch) + (documents ? "-documents" : ""));
      config.train.micro_batch = micro_batch;
      config.train.steps = 6;
      config.data.document_mask = documents;
      train(config);
      losses.push_back(losses_of(config.train.out));
    }
    for (size_t step = 0; step < 6; ++step) {
      EXPECT_NEAR(losses[1][step], losses[0][step], 2e-5) << "4x2, step " << step + 1;
      EXPECT_NEAR(losses[2][step], losses[0][step], 2e-5) << "2x4, step " << step + 1;
    }
  }
}

TEST_F(TrainerTest, SameConfigSameBits) {
  const Config a = config("a"), b = config("b");
  train(a);
  train(b);
  EXPECT_EQ(losses_of(a.train.out), losses_of(b.train.out));
  EXPECT_EQ(tensors_of(a.train.out), tensors_of(b.train.out));
}

/// A weights-only copy of `run`'s checkpoint in which the embedding of `id` is so large that a
/// layer norm of it is not finite.
void poison_embedding(const std::string& run, const std::string& root, int32_t id) {
  Checkpoint source = load_checkpoint(resolve_checkpoint(run));
  CheckpointContent content;
  content.step = source.step;
  content.model = source.model.tensors();
  content.state_json = source.state_json;
  content.config_json = source.config_json;
  content.tokenizer_model = source.tokenizer_model;
  TensorView& embedding = content.model.at("embedding");
  std::vector<float> rows(embedding.bytes() / sizeof(float));
  std::memcpy(rows.data(), embedding.data, embedding.bytes());
  const int64_t channels = embedding.shape[1];
  for (int64_t c = 0; c < channels; ++c) {
    const float largest = std::numeric_limits<float>::max();
    rows[id * channels + c] = c % 2 == 0 ? largest : -largest;
  }
  embedding.data = rows.data();
  save_checkpoint(root, content, {});
}

/// The one token that a line of the corpus has and no other.
int64_t place_of_rare_token(const Shard& shard, const Tokenizer& tokenizer) {
  for (const int32_t id : tokenizer.encode("\u2603")) {
    std::vector<int64_t> places;
    for (int64_t i = 0; i < shard.size(); ++i) {
      if (shard.token(i) == id) places.push_back(i);
    }
    if (places.size() == 1) return places[0];
  }
  return -1;
}

class NonFiniteTest : public TrainerTest {
 protected:
  void SetUp() override {
    Config source = config("source");
    source.train.steps = 1;
    source.model.norm = NormKind::kLayer;
    train(source);
    const Shard shard = Shard::open(corpus_->train);
    const int64_t place = place_of_rare_token(shard, Tokenizer::load(corpus_->tokenizer));
    ASSERT_GE(place, 0);
    poison_embedding(source.train.out, folder_ / "poisoned", shard.token(place));

    run_ = config("run");
    run_.model.norm = NormKind::kLayer;
    run_.data.valid = "";
    run_.train.init_from = folder_ / "poisoned";
    // An epoch and half of the next: its sequence comes once or twice.
    sequences_ = (shard.size() - 1) / run_.train.context;
    run_.train.steps = sequences_ * 3 / 2 / run_.train.batch;
    for (int64_t g = 0; g < run_.train.steps * run_.train.batch; ++g) {
      const int64_t id =
          Loader::sequence_at(run_.train.seed, g / sequences_, g % sequences_, sequences_);
      if (id == place / run_.train.context) bad_steps_.push_back(g / run_.train.batch + 1);
    }
    ASSERT_FALSE(bad_steps_.empty());
  }

  Config run_;
  int64_t sequences_ = 0;
  std::vector<int64_t> bad_steps_;
};

TEST_F(NonFiniteTest, SkipLeavesOutExactlyTheBadSteps) {
  run_.train.non_finite = NonFinitePolicy::kSkip;
  ::testing::internal::CaptureStderr();
  const RunResult result = train(run_);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_TRUE(result.finished);
  EXPECT_EQ(result.skipped, static_cast<int64_t>(bad_steps_.size()));
  EXPECT_NE(said.find("skipped, 1 in a row of at most 10 (sequences "), std::string::npos) << said;

  std::vector<int64_t> bad_lines;
  const std::vector<json> lines = metrics_of(run_.train.out);
  for (const json& line : lines) {
    if (line["loss"].is_null()) bad_lines.push_back(line["step"]);
  }
  EXPECT_EQ(bad_lines, bad_steps_);
  const int64_t updates = run_.train.steps - result.skipped;
  EXPECT_EQ(lines.back()["tokens"], updates * run_.train.batch * run_.train.context);
  // No bad step reached a weight or the optimizer.
  for (const auto& [name, bytes] : tensors_of(run_.train.out)) {
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    const int64_t bad = std::count_if(values.begin(), values.end(),
                                      [](float value) { return !std::isfinite(value); });
    EXPECT_EQ(bad, 0) << name;
  }
}

TEST_F(NonFiniteTest, StopSavesTheStepBefore) {
  EXPECT_THROW(
      {
        try {
          train(run_);
        } catch (const NonFiniteError& error) {
          EXPECT_EQ(error.code(), ExitCode::kNonFinite);
          EXPECT_NE(std::string(error.what()).find("no weight was touched"), std::string::npos);
          throw;
        }
      },
      NonFiniteError);
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(run_.train.out)).step, bad_steps_[0] - 1);
  // Going on with the other policy is allowed: it is no frozen field.
  run_.train.non_finite = NonFinitePolicy::kSkip;
  EXPECT_TRUE(train(run_).finished);
}

TEST_F(NonFiniteTest, SkipGivesUpAfterTheLimit) {
  Config config = this->config("diverged");
  config.optimizer.lr = 1e30;
  config.train.non_finite = NonFinitePolicy::kSkip;
  config.train.non_finite_limit = 3;
  config.schedule.warmup_steps = 0;
  EXPECT_THROW(train(config), NonFiniteError);
  const std::vector<json> lines = metrics_of(config.train.out);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_FALSE(lines[0]["grad_norm"].is_null());
  for (int step = 1; step < 4; ++step) EXPECT_TRUE(lines[step]["grad_norm"].is_null());
}

/// Trains `config` with a NaN written into a weight after step `poisoned`; the message of the
/// NonFiniteError that ends it.
std::string refusal_to_save(const Config& config, int64_t poisoned) {
  std::unique_ptr<Trainer> trainer;
  RunOptions options = quiet_options();
  options.on_step = [&](const StepMetrics& metrics) {
    const at::NoGradGuard no_grad;
    if (metrics.step == poisoned) {
      trainer->model()->named_parameters()["blocks.0.ffn.down"].view({-1})[7].fill_(NAN);
    }
    return true;
  };
  trainer = std::make_unique<Trainer>(config, options);
  try {
    trainer->run();
  } catch (const NonFiniteError& error) {
    return error.what();
  }
  return "";
}

TEST_F(TrainerTest, WeightsThatAreNotFiniteAreNeverSaved) {
  Config config = this->config("run");
  config.data.valid = "";
  config.train.save_every = 3;
  config.train.stop_on_save_error = false;
  const std::string root = config.train.out + "/checkpoints";
  for (const int64_t poisoned : {6, 12}) {  // a save in between, and the last one
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(refusal_to_save(config, poisoned),
              "step " + std::to_string(poisoned) +
                  ": blocks.0.ffn.down holds values that are not finite, so the step is not saved; "
                  "continue from the newest checkpoint with a lower optimizer.lr");
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "") << "the error says it all";
    EXPECT_EQ(load_checkpoint(resolve_checkpoint(root)).step, poisoned - 3);
  }
  EXPECT_TRUE(train(config).finished);
}

TEST_F(TrainerTest, WeightsThatAreNotFiniteAreNoStart) {
  Config source = config("source"), run = config("run");
  train(source);
  Checkpoint saved = load_checkpoint(resolve_checkpoint(source.train.out));
  CheckpointContent content;
  content.step = saved.step;
  content.model = saved.model.tensors();
  content.optimizer = saved.optimizer->tensors();
  content.state_json = saved.state_json;
  content.config_json = saved.config_json;
  content.tokenizer_model = saved.tokenizer_model;
  const std::vector<float> norm(16, std::numeric_limits<float>::infinity());
  content.model.at("norm.weight").data = norm.data();
  const std::string folder = save_checkpoint(folder_ / "bad", content, {});
  const std::string message = "norm.weight holds values that are not finite";
  run.train.init_from = folder;
  const auto refusal = [](const Config& config, const RunOptions& options) -> std::string {
    try {
      Trainer trainer(config, options);
    } catch (const NonFiniteError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refusal(run, quiet_options()).find(message), std::string::npos);
  RunOptions resume = quiet_options(ResumePolicy::kFolder);
  resume.resume_folder = folder;
  EXPECT_NE(refusal(source, resume).find(message), std::string::npos);
}

TEST_F(TrainerTest, StopsBySignalAndByTimeLimit) {
  RunOptions options = quiet_options();
  options.on_step = stop_after(3, SIGUSR1);
  const RunResult stopped = train(config("signal"), options);
  EXPECT_EQ(stopped.signal, SIGUSR1);
  EXPECT_EQ(stopped.step, 3);
  EXPECT_FALSE(stopped.finished);
  EXPECT_EQ(load_checkpoint(stopped.checkpoint).step, 3);
  EXPECT_EQ(stop_signal(), 0) << "reported, so that another run may follow";
  EXPECT_TRUE(train(config("signal")).finished);

  Config limited = config("limited");
  limited.train.time_limit_s = 1e-9;
  const RunResult out_of_time = train(limited);
  EXPECT_EQ(out_of_time.signal, 0);
  EXPECT_FALSE(out_of_time.finished);
  EXPECT_EQ(load_checkpoint(out_of_time.checkpoint).step, out_of_time.step);
}

TEST_F(TrainerTest, SavesByTime) {
  Config config = this->config("by-time");
  config.train.steps = 4;
  config.train.save_minutes = 1e-9;
  config.train.keep_last = 10;
  const auto steps_saved = [&] {
    std::vector<int64_t> steps;
    for (const auto& summary : list_checkpoints(config.train.out + "/checkpoints")) {
      steps.push_back(summary.step);
    }
    return steps;
  };
  train(config);
  EXPECT_EQ(steps_saved(), (std::vector<int64_t>{1, 2, 3, 4}));
  config.train.out = folder_ / "not-by-time";
  config.train.save_minutes = 0;
  train(config);
  EXPECT_EQ(steps_saved(), (std::vector<int64_t>{4}));
}

TEST_F(TrainerTest, KeepsTheCheckpointsThatRetentionNames) {
  Config config = this->config("run");
  config.train.save_every = 2;
  config.train.keep_last = 1;
  config.train.keep_every = 8;
  train(config);
  std::vector<int64_t> steps;
  for (const auto& summary : list_checkpoints(config.train.out + "/checkpoints")) {
    steps.push_back(summary.step);
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{8, 12}));
}

/// Trains for 12 steps, saving every 4th, while no file may grow beyond 4 KB around step 8: lines
/// of metrics fit, a checkpoint does not. Returns what went to standard error.
std::string train_with_a_failed_save(const Config& config) {
  std::optional<FileSizeLimit> limit;
  RunOptions options = quiet_options();
  options.on_step = [&](const StepMetrics& metrics) {
    limit.reset();
    if (metrics.step == 8) limit.emplace(4096);
    return true;
  };
  ::testing::internal::CaptureStderr();
  std::string thrown;
  try {
    EXPECT_TRUE(train(config, options).finished);
  } catch (const CheckpointError& error) {
    thrown = error.what();
  }
  limit.reset();
  return ::testing::internal::GetCapturedStderr() + thrown;
}

TEST_F(TrainerTest, ASaveThatFailsStopsTheRunOrNot) {
  for (const bool stop : {false, true}) {
    Config config = this->config(stop ? "stops" : "goes-on");
    config.train.save_every = 4;
    config.train.keep_last = 3;
    config.train.stop_on_save_error = stop;
    const std::string said = train_with_a_failed_save(config);
    EXPECT_NE(said.find("step-00000008"), std::string::npos) << said;
    EXPECT_EQ(said.find("training goes on without this checkpoint") != std::string::npos, !stop);
    std::vector<int64_t> steps;
    for (const auto& summary : list_checkpoints(config.train.out + "/checkpoints")) {
      steps.push_back(summary.step);
      EXPECT_TRUE(summary.complete) << summary.folder;
    }
    EXPECT_EQ(steps, stop ? (std::vector<int64_t>{4}) : (std::vector<int64_t>{4, 12}));
    EXPECT_EQ(metrics_of(config.train.out).size(), stop ? 8u : 12u);
    EXPECT_TRUE(train(config).finished) << "with space again";
  }
}

TEST_F(TrainerTest, WhatIsRefusedLeavesNoRunFolder) {
  const auto refused = [&](const Config& config) {
    EXPECT_ANY_THROW(Trainer(config, quiet_options()));
    EXPECT_FALSE(std::filesystem::exists(config.train.out));
  };
  Config missing = config("missing");
  missing.data.train = {folder_ / "nowhere.shard"};
  refused(missing);
  Config no_tokenizer = config("no-tokenizer");
  no_tokenizer.data.tokenizer = "";
  refused(no_tokenizer);
  Config small = config("small");
  small.model.vocab_size = 100;
  refused(small);
  Config too_long = config("too-long");
  too_long.train.context = 1 << 20;
  refused(too_long);
  Config no_source = config("new/runs/no-source");
  no_source.train.init_from = folder_ / "nowhere";
  refused(no_source);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "new"));
}

TEST_F(TrainerTest, OneProcessTrainsInAFolderAndNeverMeansAFreshOne) {
  const Config config = this->config("run");
  {
    Trainer first(config, quiet_options());
    EXPECT_THROW(Trainer(config, quiet_options()), ConfigError);
    first.run();
  }
  EXPECT_THROW(Trainer(config, quiet_options(ResumePolicy::kNever)), CheckpointError);
  EXPECT_TRUE(train(config).finished) << "auto: there is nothing left to do";
}

TEST_F(TrainerTest, DryRunCountsWhatTheCheckpointHolds) {
  const Config config = this->config("run");
  const std::string report = dry_run_report(config);
  EXPECT_FALSE(std::filesystem::exists(config.train.out));
  train(config);
  const Checkpoint checkpoint = load_checkpoint(resolve_checkpoint(config.train.out));
  size_t parameters = 0;
  for (const auto& [name, view] : checkpoint.model.tensors()) parameters += view.bytes() / 4;
  const std::string count = std::to_string(parameters);
  const std::string text =
      count.substr(0, count.size() - 3) + "," + count.substr(count.size() - 3) + "\n";
  EXPECT_NE(report.find(text), std::string::npos) << report << "\nlacks " << text;
  EXPECT_NE(report.find("1,536"), std::string::npos) << "12 steps of 8 x 16 tokens\n" << report;
}

/// The number of a dry run's row, in the unit that it states.
double figure_of(const std::string& report, const std::string& name) {
  const size_t begin = report.find("\n  " + name);
  return std::stod(report.substr(begin + 3 + name.size()));
}

TEST_F(TrainerTest, DryRunOfSeveralProcessesSplitsBatchAndOptimizer) {
  Config config = this->config("run");
  config.train.micro_batch = 0;
  const std::string alone = dry_run_report(config), four = dry_run_report(config, 4);
  EXPECT_EQ(alone.find("processes"), std::string::npos) << alone;
  EXPECT_NE(four.find("4   1 x 2 of the 8 sequences of a step each"), std::string::npos) << four;
  EXPECT_NE(four.find("micro-batch of 2 x 16 tokens"), std::string::npos) << four;
  EXPECT_NEAR(figure_of(four, "optimizer"), figure_of(alone, "optimizer") / 4, 0.051);
  EXPECT_EQ(figure_of(four, "weights"), figure_of(alone, "weights"))
      << "fp32 has no low-order part";
  config.train.shard = ShardKind::kNone;
  EXPECT_EQ(figure_of(dry_run_report(config, 4), "optimizer"), figure_of(alone, "optimizer"));
  config.optimizer.state = StateDtype::kBf16;
  EXPECT_NEAR(figure_of(dry_run_report(config), "optimizer"), figure_of(alone, "optimizer") / 2,
              0.051);
  EXPECT_THROW(dry_run_report(config, 3), ConfigError);
}

TEST_F(TrainerTest, DryRunOfAdaptersLeavesOutWhatTheBackwardComputesAgain) {
  Config config = this->config("run");
  config.train.batch = config.train.micro_batch = 1 << 22;
  const double full = figure_of(dry_run_report(config), "activations");
  config.model.lora.rank = 2;
  const std::string report = dry_run_report(config);
  const ModelConfig& model = config.model;
  const int64_t per_token = model.layers * (2 * model.channels + model.ffn_hidden);
  const double gib = static_cast<double>(per_token * config.train.context) / (1 << 30) *
                     static_cast<double>(config.train.micro_batch * sizeof(float));
  ASSERT_NE(report.find(" GiB   micro-batch"), std::string::npos) << report;
  EXPECT_NEAR(full - figure_of(report, "activations"), gib, 0.11) << "norms and silu(gate) * up";
}

TEST_F(TrainerTest, DryRunCountsFrozenParametersAndHugeRuns) {
  Config config = this->config("run");
  EXPECT_EQ(dry_run_report(config).find("trained"), std::string::npos);
  config.train.freeze_layers = 1;
  config.train.batch = config.train.micro_batch = int64_t{1} << 40;
  config.train.steps = int64_t{1} << 40;
  const std::string report = dry_run_report(config);
  EXPECT_NE(report.find("  trained"), std::string::npos) << report;
  EXPECT_NE(report.find("1.934e+25"), std::string::npos) << "2^84 tokens\n" << report;
  EXPECT_EQ(report.find(" -"), std::string::npos) << "no negative number\n" << report;
}

}  // namespace
}  // namespace stablemask
