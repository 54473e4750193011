#include <gtest/gtest.h>

#include <filesystem>

#include "stablemask/base/error.h"
#include "stablemask/data/shards.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using testing::losses_of;
using testing::tensors_of;
using testing::train;
using testing::train_with_stops;

class MixtureTest : public testing::TinyRunTest {
 protected:
  /// Three parts of the training text to one of the validation text.
  Config mixture(const std::string& out, double valid_weight = 1) const {
    Config run = config(out);
    run.data.train = {{corpus_->train, 3}, {corpus_->valid, valid_weight}};
    run.train.steps = 8;
    return run;
  }
};

TEST_F(MixtureTest, ResumesBitForBitAndDiffersFromOneText) {
  const Config whole = mixture("whole"), stopped = mixture("stopped");
  train(whole);
  train_with_stops(stopped, {3, 5});
  EXPECT_EQ(losses_of(whole.train.out), losses_of(stopped.train.out));
  EXPECT_EQ(tensors_of(whole.train.out), tensors_of(stopped.train.out));
  Config text = mixture("text");
  text.data.train = {corpus_->train, corpus_->valid};
  train(text);
  EXPECT_NE(losses_of(whole.train.out), losses_of(text.train.out));
}

TEST_F(MixtureTest, OtherWeightsAreOtherData) {
  train(mixture("run"));
  Config other = mixture("run", 2);
  other.train.steps = 10;
  EXPECT_THROW(train(other), DataError);
  other = mixture("run");
  other.train.steps = 10;
  EXPECT_EQ(train(other).step, 10);
}

TEST_F(MixtureTest, SharesAndEpochsAreReported) {
  const std::string report = dry_run_report(mixture("dry"));
  EXPECT_NE(report.find("75.0 %"), std::string::npos) << report;
  EXPECT_NE(report.find("25.0 %"), std::string::npos) << report;
  Config run = mixture("epoch");
  run.train.steps = 0;
  run.train.epochs = 1;
  const auto sequences = [&](const std::string& path) {
    return (Shard::open(path).size() - 1) / run.train.context;
  };
  const int64_t all = sequences(corpus_->train) + sequences(corpus_->valid);
  const int64_t steps = (all + run.train.batch - 1) / run.train.batch;
  const std::string epoch = dry_run_report(run);
  EXPECT_NE(epoch.find(std::to_string(steps) + "   128 tokens each"), std::string::npos) << epoch;
}

}  // namespace
}  // namespace stablemask
