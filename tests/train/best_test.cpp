#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;
using testing::metrics_of;
using testing::tensors_of;
using testing::train;
using testing::train_with_stops;

/// Runs that worsen: the learning rate is far too large, and grows.
class BestTest : public testing::TinyRunTest {
 protected:
  Config worsening(const std::string& out) const {
    Config run = config(out);
    run.train.steps = 24;
    run.train.eval_every = 2;
    run.train.keep_best = true;
    run.train.keep_last = 1;
    run.optimizer.lr = 10;
    run.schedule.warmup_steps = 24;
    return run;
  }
  /// Step and loss of the lowest validation of the metrics.
  static std::pair<int64_t, double> best_of(const std::string& run) {
    std::pair<int64_t, double> best = {0, 1e9};
    for (const auto& line : metrics_of(run)) {
      if (!line.contains("valid_loss") || line["valid_loss"] >= best.second) continue;
      best = {line["step"], line["valid_loss"]};
    }
    return best;
  }
  static std::string step_folder(int64_t step) {
    char name[32];
    std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(step));
    return name;
  }
  static std::string refusal(const std::string& path) {
    try {
      return resolve_checkpoint(path);
    } catch (const CheckpointError& error) {
      return error.what();
    }
  }
};

TEST_F(BestTest, CheckpointOfTheLowestLossIsKeptAndNamed) {
  const Config run = worsening("run");
  const RunResult result = train(run);
  const auto [step, loss] = best_of(run.train.out);
  ASSERT_GT(step, 0);
  ASSERT_LT(step, 24) << "the run was to worsen";
  EXPECT_EQ(result.best_step, step);
  EXPECT_EQ(result.best_loss, loss);
  const std::string root = fs::path(run.train.out + "/checkpoints/").lexically_normal().string();
  EXPECT_EQ(resolve_checkpoint(run.train.out + "/best"), root + step_folder(step));
  EXPECT_EQ(resolve_checkpoint(run.train.out + "/best/"), root + step_folder(step));
  EXPECT_EQ(fs::path(resolve_checkpoint(run.train.out)).lexically_normal(), root + step_folder(24));
  EXPECT_EQ(list_checkpoints(run.train.out + "/checkpoints").size(), 2u);
}

TEST_F(BestTest, StoppedRunKeepsTheSameOne) {
  const Config whole = worsening("whole"), stopped = worsening("stopped");
  train(whole);
  train_with_stops(stopped, {3, 6, 17});
  EXPECT_EQ(tensors_of(whole.train.out + "/best"), tensors_of(stopped.train.out + "/best"));
  EXPECT_EQ(best_of(whole.train.out), best_of(stopped.train.out));
}

// Killed between a save and the writing of BEST, which retention comes after: the older name is
// there, and what it names.
TEST_F(BestTest, AKilledProcessLeavesANameThatTheNextOneCorrects) {
  Config run = worsening("run");
  run.train.keep_last = 24;
  train(run);
  const int64_t step = best_of(run.train.out).first;
  const std::string file = run.train.out + "/checkpoints/BEST";
  EXPECT_EQ(testing::read_file(file), step_folder(step) + "\n");
  testing::write_file(file, step_folder(2) + "\n");
  EXPECT_TRUE(train(run).finished);
  EXPECT_EQ(testing::read_file(file), step_folder(step) + "\n") << "the run had ended";
  testing::write_file(file, "step-0");
  run.train.steps = 25;
  train(run);
  EXPECT_EQ(testing::read_file(file), step_folder(step) + "\n");
}

TEST_F(BestTest, PatienceEndsTheRunForGoodUntilItIsRaised) {
  Config run = worsening("run");
  run.train.patience = 2;
  const RunResult result = train(run);
  EXPECT_TRUE(result.out_of_patience);
  EXPECT_FALSE(result.finished);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.step, result.best_step + 2 * run.train.eval_every);
  EXPECT_EQ(train(run).step, result.step) << "resumed";
  EXPECT_TRUE(train(run).out_of_patience);
  run.train.patience = 3;
  EXPECT_GT(train(run).step, result.step);
  run.train.patience = 0;
  EXPECT_EQ(train(run).step, 24);
  EXPECT_TRUE(train(run).finished);
}

TEST_F(BestTest, WithoutOneBestIsRefusedByName) {
  Config run = config("plain");
  train(run);
  const std::string& out = run.train.out;
  EXPECT_EQ(
      refusal(out + "/best"),
      out + "/best: the run has named no best checkpoint; train it with train.keep_best, or name " +
          fs::path(out).lexically_normal().string() + " for its newest one");
  EXPECT_EQ(refusal(folder_ / "nowhere/best"),
            std::string(folder_ / "nowhere/best") + ": there is no such folder; check the path");
  run = worsening("kept");
  train(run);
  const std::string best = resolve_checkpoint(run.train.out + "/best");
  fs::remove_all(best);
  EXPECT_NE(refusal(run.train.out + "/best").find("is not there any more"), std::string::npos);
}

TEST_F(BestTest, APartIsValidatedUntilTheLastStep) {
  Config part = config("part"), whole = config("whole");
  part.train.steps = whole.train.steps = 6;
  part.train.eval_every = whole.train.eval_every = 2;
  part.eval.tokens = 40;
  train(part);
  train(whole);
  std::vector<nlohmann::json> of_part, of_whole;
  for (const auto& line : metrics_of(part.train.out)) {
    if (line.contains("valid_loss")) of_part.push_back(line);
  }
  for (const auto& line : metrics_of(whole.train.out)) {
    if (line.contains("valid_loss")) of_whole.push_back(line);
  }
  ASSERT_EQ(of_part.size(), 3u);
  for (const size_t i : {0, 1}) {
    EXPECT_EQ(of_part[i]["valid_tokens"], 40);
    EXPECT_NE(of_part[i]["valid_loss"], of_whole[i]["valid_loss"]);
    EXPECT_NEAR(of_part[i]["valid_loss"].get<double>(), of_whole[i]["valid_loss"].get<double>(), 1);
    EXPECT_FALSE(of_part[i].contains("valid_word_ppl"));
  }
  EXPECT_EQ(of_part[2]["valid_tokens"], Shard::open(corpus_->valid).size());
  EXPECT_EQ(of_part[2]["valid_tokens"], of_whole[0]["valid_tokens"]);
  EXPECT_EQ(of_part[2]["valid_loss"], of_whole[2]["valid_loss"]);
  EXPECT_EQ(of_part[2]["valid_word_ppl"], of_whole[2]["valid_word_ppl"]);
}

}  // namespace
}  // namespace stablemask
