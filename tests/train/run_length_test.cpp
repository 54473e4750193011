#include <gtest/gtest.h>

#include <csignal>
#include <fstream>

#include "stablemask/base/error.h"
#include "stablemask/data/shards.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::losses_of;
using testing::quiet_options;
using testing::stop_after;
using testing::train;

class RunLengthTest : public testing::TinyRunTest {
 protected:
  /// A run of this many passes in steps of a quarter of the corpus.
  Config epochs_config(const std::string& out, double epochs) const {
    Config run = config(out);
    const int64_t sequences = (Shard::open(corpus_->train).size() - 1) / run.train.context;
    run.train.batch = sequences / 4;
    run.train.micro_batch = 0;
    run.train.steps = 0;
    run.train.epochs = epochs;
    run.schedule.warmup_steps = 0;
    return run;
  }
  static json stored_config(const Config& run) {
    std::ifstream file(run.train.out + "/config.json");
    return json::parse(file);
  }
};

TEST_F(RunLengthTest, OfEpochsIsThatOfItsSteps) {
  // A quarter of the corpus rounded down: one pass takes more than four steps.
  Config epochs = epochs_config("epochs", 0.5), steps = epochs_config("steps", 0);
  steps.train.steps = 3;
  const int64_t sequences = (Shard::open(corpus_->train).size() - 1) / epochs.train.context;
  if (sequences % 4 == 0) steps.train.steps = 2;
  EXPECT_EQ(train(epochs).step, steps.train.steps);
  train(steps);
  EXPECT_EQ(losses_of(epochs.train.out), losses_of(steps.train.out));
  const json stored = stored_config(epochs)["train"];
  EXPECT_EQ(stored["steps"], steps.train.steps);
  EXPECT_EQ(stored["epochs"], 0);
}

TEST_F(RunLengthTest, OfTokensIsThatOfItsSteps) {
  Config run = config("tokens");
  run.train.tokens = 3.0 * 8 * 16 - 1;
  EXPECT_EQ(train(run).step, 3);
  EXPECT_NE(dry_run_report(run).find("steps                                   3   128 tokens each"),
            std::string::npos)
      << dry_run_report(run);
}

TEST_F(RunLengthTest, AStoppedRunGoesOnAndMoreEpochsContinueAFinishedOne) {
  Config run = epochs_config("run", 0.5), whole = epochs_config("whole", 1);
  RunOptions options = quiet_options();
  options.on_step = stop_after(1, SIGTERM);
  EXPECT_EQ(train(run, options).step, 1);
  request_stop(0);
  const int64_t half = train(run).step;
  run.train.epochs = 1;
  const RunResult result = train(run);
  EXPECT_TRUE(result.finished);
  EXPECT_GT(result.step, half);
  EXPECT_EQ(train(whole).step, result.step);
  EXPECT_EQ(losses_of(run.train.out).size(), losses_of(whole.train.out).size());
  EXPECT_EQ(losses_of(run.train.out).front(), losses_of(whole.train.out).front());
}

TEST_F(RunLengthTest, WarnsOfAWarmupThatIsLongerOnceTheStepsAreKnown) {
  Config run = config("warned");
  run.train.steps = 0;
  run.train.tokens = 2 * 8 * 16;
  run.schedule.warmup_steps = 5;
  ::testing::internal::CaptureStderr();
  train(run);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "stablemask: warning: schedule.warmup_steps 5 is more than train.steps 2: warm-up "
            "shortened to 2 steps\n");
}

}  // namespace
}  // namespace stablemask
