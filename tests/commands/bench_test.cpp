// `stablemask bench` as a user calls it.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "stablemask/ops/device.h"
#include "tests/commands/program.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::expect_refusal;
using testing::Outcome;
using testing::read_file;
using testing::TemporaryFolder;

const std::string kSmall =
    "bench step --model 71m --device cpu --batch 4 --micro-batch 2 --context 32 --vocab 96 --steps "
    "4 "
    "--set model.layers=1 --set model.channels=32 --set model.heads=2 --set model.ffn_hidden=48 "
    "--set train.threads=1 --json step.json ";

json small_step(const TemporaryFolder& folder, const std::string& options) {
  const Outcome outcome = testing::run_program(folder, kSmall + options);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("tokens/s"), std::string::npos) << outcome.out;
  return json::parse(read_file(folder / "step.json"));
}

TEST(BenchStep, FiguresAreConsistent) {
  const TemporaryFolder folder;
  const json result = small_step(folder, "--mask stablemask --position alibi");
  const auto number = [&](const char* key) { return result.at(key).get<double>(); };

  EXPECT_EQ(result.at("mask"), "stablemask");
  EXPECT_EQ(result.at("position"), "alibi");
  EXPECT_EQ(result.at("device"), "cpu");
  EXPECT_EQ(result.at("parameters"), 2 * 96 * 32 + 32 * (4 * 32 + 3 * 48) + 3 * 32);
  EXPECT_EQ(result.at("timed_steps"), 4);
  EXPECT_EQ(result.at("timed_tokens"), 4 * 4 * 32);
  EXPECT_NEAR(number("tokens_per_second") * number("step_ms") / 1e3, 4 * 32, 1e-6);
  EXPECT_NEAR(number("tokens_per_second_mean") * number("timed_seconds"), 4 * 4 * 32, 1e-6);
  EXPECT_TRUE(result.at("mfu").is_null());
  EXPECT_GT(number("peak_memory_bytes"), 1e6);
  EXPECT_GT(number("start_seconds"), 0.0);
  EXPECT_LT(number("start_seconds"), 300.0);
}

TEST(BenchStep, TrainsTheModel) {
  const TemporaryFolder folder;
  for (const std::string mask : {"causal", "stablemask", "infinite"}) {
    const json losses = small_step(folder, "--set optimizer.lr=0.01 --mask " + mask).at("losses");
    ASSERT_EQ(losses.size(), 5u + 4u);
    // Untrained, the loss is that of a guess.
    EXPECT_NEAR(losses.front().get<double>(), std::log(96.0), 0.05) << mask;
    EXPECT_NE(losses.front(), losses.back());
  }
}

TEST(BenchStep, ComparesALearnableMaskWithTheFixedOne) {
  const TemporaryFolder folder;
  const json result = small_step(folder, "--learnable");
  const json& compared = result.at("compared");
  EXPECT_EQ(result.at("learnable"), false);
  EXPECT_EQ(compared.at("learnable"), true);
  // gamma and p_base of both heads.
  EXPECT_EQ(compared.at("parameters").get<int>(), result.at("parameters").get<int>() + 4);
  EXPECT_NEAR(result.at("compared_overhead").get<double>(),
              compared.at("step_ms").get<double>() / result.at("step_ms").get<double>() - 1.0,
              1e-9);
}

TEST(BenchStep, RefusesWhatCannotRun) {
  const TemporaryFolder folder;
  expect_refusal(testing::run_program(folder, "bench step --mask causal --learnable"), 2,
                 "--learnable");
  expect_refusal(testing::run_program(folder, "bench step --model 70m"), 2, "70m");
  expect_refusal(testing::run_program(folder, "bench step --batch 4 --micro-batch 3"), 2,
                 "micro_batch");
  expect_refusal(testing::run_program(folder, "bench step --json none/step.json"), 2, "none");
}

TEST(BenchKernels, SayThatThereIsNoGpu) {
  if (ops::cuda_problem().empty()) GTEST_SKIP() << "there is a GPU";
  const TemporaryFolder folder;
  for (const std::string name : {"ops", "attention"}) {
    expect_refusal(testing::run_program(folder, "bench " + name + " --json out.json"), 2, "GPU");
    EXPECT_TRUE(read_file(folder / "out.json").empty());
  }
}

}  // namespace
}  // namespace stablemask
