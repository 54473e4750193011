// --weights of the commands that read a checkpoint.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

using testing::Outcome;
using testing::PipelineTest;
using testing::read_file;

class WeightsTest : public PipelineTest {
 protected:
  /// A run of the pipeline's config with an average, made once.
  static void SetUpTestSuite() {
    succeed(
        "pretrain tiny.json --set train.out=averaged --set train.ema_decay=0.9 --set "
        "train.steps=20");
  }
  static double nll(const std::string& checkpoint) {
    return nlohmann::json::parse(
        succeed("eval --data valid.shard --json - --checkpoint " + checkpoint).out)["nll"];
  }
};

TEST_F(WeightsTest, EvalTakesTheAveragesUnlessToldOtherwise) {
  const double averaged = nll("averaged"), trained = nll("averaged --weights trained");
  EXPECT_EQ(nll("averaged --weights averaged"), averaged);
  EXPECT_NE(trained, averaged);
  EXPECT_EQ(nll("run --weights trained"), nll("run")) << "a run without an average";
  const auto line = testing::metrics_of(path("averaged")).back();
  EXPECT_NEAR(averaged, line["valid_loss"].get<double>() * line["valid_tokens"].get<double>(),
              1e-6 * averaged);
}

TEST_F(WeightsTest, OtherCommandsTakeThemToo) {
  for (const std::string weights : {"averaged", "trained"}) {
    const std::string use = "--checkpoint averaged --weights " + weights;
    succeed("export --to exported-" + weights + " " + use);
    succeed("generate --prompt The --logprobs 1 --json " + weights + ".json --greedy " + use);
    succeed("inspect --data valid.shard --windows 1 --out inspected-" + weights + " " + use);
  }
  const auto differ = [](const std::string& a, const std::string& b) {
    return read_file(path(a)) != read_file(path(b));
  };
  EXPECT_TRUE(differ("exported-averaged/model.safetensors", "exported-trained/model.safetensors"));
  EXPECT_TRUE(differ("averaged.json", "trained.json"));
  EXPECT_TRUE(differ("inspected-averaged/inspect.json", "inspected-trained/inspect.json"));
}

TEST_F(WeightsTest, RefusesWhatItCannotTake) {
  Outcome outcome = run("eval --checkpoint averaged --data valid.shard --weights best");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("--weights: must be one of averaged, trained, not \"best\""),
            std::string::npos)
      << outcome.err;
  succeed("checkpoint strip averaged stripped");
  EXPECT_EQ(nll("stripped"), nll("averaged"));
  outcome = run("eval --checkpoint stripped --data valid.shard --weights trained");
  EXPECT_EQ(outcome.code, 4);
  EXPECT_NE(outcome.err.find("stripped: holds averaged weights alone, without the trained ones"),
            std::string::npos)
      << outcome.err;
  outcome = run("pretrain tiny.json --set train.out=refused --set train.ema_decay=1");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("/train/ema_decay"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace stablemask
