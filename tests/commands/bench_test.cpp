// `stablemask bench` as a user calls it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "stablemask/ops/device.h"
#include "tests/commands/launch.h"
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
  const json& start = result.at("start");
  double stages = 0;
  for (const char* stage : {"loading", "device", "weights", "step"}) {
    stages += start.at(std::string(stage) + "_seconds").get<double>();
  }
  EXPECT_NEAR(stages, number("start_seconds"), 0.05);
  EXPECT_EQ(start.at("algorithms"), 0) << "a CPU has none to choose";
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

testing::Launch::Arguments words_of(const std::string& line) {
  std::istringstream words(line);
  return {std::istream_iterator<std::string>(words), {}};
}

TEST(BenchStep, TwoProcessesTrainAsOneDoes) {
  const std::string options = "--mask stablemask --set train.batch=8 --set optimizer.lr=0.01 ";
  const TemporaryFolder folder;
  const json one = small_step(folder, options);
  for (const std::string shard : {"optimizer", "none"}) {
    testing::Launch launch(folder, 2, words_of(kSmall + options + "--shard " + shard));
    ASSERT_EQ(launch.codes(), (std::vector<int>{0, 0})) << launch.said();
    const json two = json::parse(read_file(folder / "step.json"));
    EXPECT_EQ(two.at("processes"), 2);
    EXPECT_EQ(two.at("shard"), shard);
    EXPECT_EQ(two.at("batch"), 8);
    EXPECT_EQ(two.at("timed_tokens"), 4 * 8 * 32);
    EXPECT_NEAR(two.at("tokens_per_second").get<double>() * two.at("step_ms").get<double>() / 1e3,
                8 * 32, 1e-6);
    ASSERT_EQ(two.at("losses").size(), one.at("losses").size());
    for (size_t i = 0; i < two.at("losses").size(); ++i) {
      EXPECT_NEAR(two.at("losses")[i].get<double>(), one.at("losses")[i].get<double>(), 1e-5) << i;
    }
    EXPECT_NE(launch.out(0).find("processes    2; shard " + shard), std::string::npos);
    EXPECT_EQ(launch.out(1) + launch.err(1), "");
  }
}

TEST(BenchStep, ProcessesNeedEqualShares) {
  const TemporaryFolder folder;
  testing::Launch launch(folder, 2, words_of(kSmall + "--set train.batch=6"));
  EXPECT_EQ(launch.codes(), (std::vector<int>{2, 2})) << launch.said();
  EXPECT_NE(launch.err(0).find("/train/batch: 6"), std::string::npos) << launch.said();
}

TEST(BenchStep, TraceMarksTheSteps) {
  const TemporaryFolder folder;
  small_step(folder, "--trace steps");
  const json trace = json::parse(read_file(folder / "steps.0.json"));
  const json& events = trace.at("traceEvents");
  EXPECT_EQ(std::count_if(events.begin(), events.end(),
                          [](const json& event) {
                            return event.value("name", "") == "optimizer step" &&
                                   event.value("cat", "") == "user_annotation" &&
                                   event.value("ph", "") == "X" && event.at("dur") > 0;
                          }),
            3);
}

TEST(BenchGenerate, FiguresAreConsistent) {
  const TemporaryFolder folder;
  const Outcome outcome = testing::run_program(
      folder,
      "bench generate --model 71m --device cpu --batch 3 --prompt 5 --tokens 6 --vocab 96 "
      "--position alibi --set model.layers=1 --set model.channels=32 --set model.heads=2 "
      "--set model.ffn_hidden=48 --set train.threads=1 --json -");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json result = json::parse(outcome.out.substr(outcome.out.find('{')));
  const auto number = [&](const char* key) { return result.at(key).get<double>(); };
  EXPECT_EQ(result.at("mask"), "stablemask");
  EXPECT_EQ(result.at("dtype"), "fp32");
  EXPECT_EQ(result.at("cuda_graph"), false);
  EXPECT_LT(number("difference"), 1e-3);
  EXPECT_NEAR(number("tokens_per_second") * number("seconds"), 3 * 6, 1e-6);
  EXPECT_NEAR(number("prefill_tokens_per_second") * number("prefill_ms") / 1e3, 3 * 5, 1e-6);
  EXPECT_NEAR(
      number("decoded_tokens_per_second") * (number("seconds") - number("prefill_ms") / 1e3), 3 * 5,
      1e-6);
  // All weights but the embedding.
  EXPECT_EQ(number("weight_bytes"), 4 * (96 * 32 + 32 * (4 * 32 + 3 * 48) + 3 * 32));
  EXPECT_NEAR(number("weight_bytes_per_second") * number("step_ms") / 1e3, number("weight_bytes"),
              1e-3);
  expect_refusal(testing::run_program(folder, "bench generate --model 71m --tokens 1"), 2,
                 "--tokens");
}

TEST(BenchCollectives, FiguresAreConsistent) {
  const TemporaryFolder folder;
  testing::Launch launch(folder, 2,
                         words_of("bench collectives --device cpu --largest 1 --json out.json"));
  ASSERT_EQ(launch.codes(), (std::vector<int>{0, 0})) << launch.said();
  const json result = json::parse(read_file(folder / "out.json"));
  EXPECT_EQ(result.at("processes"), 2);
  ASSERT_EQ(result.at("collectives").size(), 3u * 3u);  // 64 KiB, 256 KiB, 1 MiB
  for (const json& entry : result.at("collectives")) {
    const double traffic = entry.at("collective") == "all_reduce" ? 2 : 1;
    EXPECT_NEAR(entry.at("bus_bytes_per_second").get<double>() *
                    entry.at("microseconds").get<double>() * 1e-6,
                traffic / 2 * entry.at("bytes").get<double>(), 1e-3);
  }
  EXPECT_EQ(launch.out(0).find("WRONG"), std::string::npos) << launch.out(0);
}

TEST(BenchCollectives, NeedSeveralProcesses) {
  const TemporaryFolder folder;
  expect_refusal(testing::run_program(folder, "bench collectives --device cpu"), 2, "torchrun");
}

TEST(BenchStep, RefusesWhatCannotRun) {
  const TemporaryFolder folder;
  expect_refusal(testing::run_program(folder, "bench step --mask causal --learnable"), 2,
                 "--learnable");
  expect_refusal(testing::run_program(folder, "bench step --model 70m"), 2, "70m");
  expect_refusal(testing::run_program(folder, "bench step --batch 4 --micro-batch 3"), 2,
                 "micro_batch");
  expect_refusal(testing::run_program(folder, "bench step --json none/step.json"), 2, "none");
  expect_refusal(testing::run_program(folder, "bench step --trace none/step"), 2,
                 "none/step.0.json: cannot be created");
}

TEST(BenchKernels, SayThatThereIsNoGpu) {
  if (ops::cuda_problem().empty()) GTEST_SKIP() << "there is a GPU";
  const TemporaryFolder folder;
  for (const std::string name : {"ops", "ops --only fp8: --only 1.4B", "attention"}) {
    expect_refusal(testing::run_program(folder, "bench " + name + " --json out.json"), 2, "GPU");
    EXPECT_TRUE(read_file(folder / "out.json").empty());
  }
}

}  // namespace
}  // namespace stablemask
