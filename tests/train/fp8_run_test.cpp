// Runs with fp8 products: checkpoints, resumes, metrics.
#include <gtest/gtest.h>

#include <cmath>

#include "stablemask/infer/load.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using testing::losses_of;
using testing::metrics_of;
using testing::tensors_of;
using testing::train;
using testing::train_with_stops;

class Fp8RunTest : public testing::TinyRunTest {
 protected:
  Config fp8_run(const std::string& out) const { return config_in(Precision::kFp8, out); }
};

TEST_F(Fp8RunTest, ResumesWithTheSameBits) {
  const Config whole = fp8_run("whole"), stopped = fp8_run("stopped");
  train(whole);
  train_with_stops(stopped, {1, 5, 6});
  EXPECT_EQ(losses_of(stopped.train.out), losses_of(whole.train.out));
  const auto wanted = tensors_of(whole.train.out);
  EXPECT_EQ(tensors_of(stopped.train.out), wanted);
  const size_t scaled = 2 * 4 * 3;
  EXPECT_EQ(wanted.at("fp8.history").size(), scaled * 16 * sizeof(float));
  EXPECT_EQ(wanted.at("fp8.scales").size(), scaled * sizeof(float));
  EXPECT_EQ(wanted.at("fp8.saturations").size(), scaled * sizeof(float));
}

/// With averages of the weights, in the place of which every validation puts them.
TEST_F(Fp8RunTest, NeitherStopsNorValidationsWithAveragesChangeABit) {
  Config whole = fp8_run("whole"), stopped = fp8_run("stopped");
  for (Config* run : {&whole, &stopped}) run->train.ema_decay = 0.7;
  stopped.train.eval_every = 1;
  train(whole);
  train_with_stops(stopped, {1, 5, 6});
  EXPECT_EQ(losses_of(stopped.train.out), losses_of(whole.train.out));
  const auto wanted = tensors_of(whole.train.out);
  EXPECT_EQ(tensors_of(stopped.train.out), wanted);
  EXPECT_NE(wanted.at("embedding"), wanted.at("trained.embedding"));
  EXPECT_TRUE(wanted.contains("fp8.scales"));
}

TEST_F(Fp8RunTest, PrecisionMayChangeWhenARunIsResumed) {
  const Config plain = config_in(Precision::kDtype, "plain");
  train(plain);
  for (const Precision first : {Precision::kDtype, Precision::kFp8}) {
    const bool ends_in_fp8 = first == Precision::kDtype;
    Config changed = config_in(first, ends_in_fp8 ? "into" : "out of");
    RunOptions options = testing::quiet_options();
    options.on_step = testing::stop_after(6, SIGTERM);
    train(changed, options);
    request_stop(0);
    changed.train.precision = ends_in_fp8 ? Precision::kFp8 : Precision::kDtype;
    EXPECT_TRUE(train(changed).finished);
    EXPECT_EQ(tensors_of(changed.train.out).contains("fp8.history"), ends_in_fp8);
    EXPECT_NEAR(losses_of(changed.train.out).back(), losses_of(plain.train.out).back(), 0.1);
  }
}

TEST_F(Fp8RunTest, MetricsCountWhatWasClipped) {
  const Config run = fp8_run("metrics"), plain = config_in(Precision::kDtype, "plain");
  train(run);
  train(plain);
  for (const nlohmann::json& line : metrics_of(run.train.out)) {
    EXPECT_GE(line.at("fp8_clipped").get<int64_t>(), 0);
  }
  for (const nlohmann::json& line : metrics_of(plain.train.out)) {
    EXPECT_FALSE(line.contains("fp8_clipped"));
  }
}

/// The checkpoint is that of any run: a model of fp32 weights, whose validation used no fp8.
TEST_F(Fp8RunTest, CheckpointsAreEvaluatedWithoutFp8) {
  Config run = fp8_run("model");
  const RunResult result = train(run);
  EXPECT_TRUE(std::isfinite(result.valid_loss));
  LoadOptions options;
  options.device = DeviceKind::kCpu;
  LoadedModel loaded = load_model(run.train.out, options);
  EXPECT_EQ(loaded.model->fp8, nullptr);

  Config again = config_in(Precision::kDtype, "again");
  again.train.init_from = run.train.out;
  again.optimizer.lr = 0;
  again.train.steps = 1;
  EXPECT_NEAR(train(again).valid_loss, result.valid_loss, 1e-6);
}

}  // namespace
}  // namespace stablemask
