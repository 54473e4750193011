#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "src/commands/commands.h"
#include "stablemask/base/error.h"
#include "stablemask/base/utf8.h"
#include "stablemask/config/config.h"
#include "stablemask/report/metrics.h"
#include "stablemask/report/run_summary.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

struct Result {
  ExitCode code = ExitCode::kOk;
  std::string output, error;
};

/// Runs `stablemask runs ARGUMENTS` as main does, in this process.
Result run(const std::string& arguments) {
  CLI::App program("stablemask");
  commands::add_runs(program);
  Result result;
  testing::internal::CaptureStdout();
  try {
    program.parse("runs " + arguments);
  } catch (const Error& error) {
    result.code = error.code();
    result.error = error.what();
  } catch (const CLI::ParseError& error) {
    result.code = ExitCode::kConfig;
    result.error = error.what();
  }
  std::fflush(stdout);
  result.output = testing::internal::GetCapturedStdout();
  return result;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

StepMetrics metrics_of(int64_t step, double loss) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.tokens = step * 1024;
  metrics.loss = metrics.loss_mean = loss;
  metrics.tokens_per_second = 1000.0 * static_cast<double>(step);
  metrics.seconds = 36.0 * static_cast<double>(step);
  return metrics;
}

/// Folders with the files that the program writes.
class Runs : public testing::Test {
 protected:
  void write_run(const std::string& name, const std::string& config, const std::string& metrics) {
    std::filesystem::create_directories(scratch_ / name);
    write_bytes(scratch_ / (name + "/config.json"), config);
    write_bytes(scratch_ / (name + "/metrics.jsonl"), metrics);
  }

  static std::string config_of(int64_t seed, Position position) {
    Config config;
    config.data = {.train = {std::string("train.shard")},
                   .valid = "valid.shard",
                   .tokenizer = "tokenizer.model"};
    config.train.steps = 30;
    config.train.seed = seed;
    config.train.out = "runs/" + std::to_string(seed);
    config.model.position = position;
    resolve(config);
    return dump_config(config);
  }

  /// Three lines, validated at steps 20 (better) and 30.
  static std::string metrics_text() {
    StepMetrics second = metrics_of(20, 3.5), third = metrics_of(30, 3.25);
    second.valid_loss = 3.75;
    second.valid_word_ppl = 42.5;
    third.valid_loss = 3.875;
    third.valid_word_ppl = 48.0;
    return metrics_line(metrics_of(10, 4.0)) + "\n" + metrics_line(second) + "\n" +
           metrics_line(third) + "\n";
  }

  Scratch scratch_;
};

TEST_F(Runs, SummaryHasLastStepBestValidationAndMedianRate) {
  write_run("a", "", metrics_text());
  const RunSummary summary = summarize_run(scratch_ / "a");
  EXPECT_EQ(summary.lines, 3);
  EXPECT_EQ(summary.step, 30);
  EXPECT_EQ(summary.tokens, 30720);
  EXPECT_EQ(summary.loss, 3.25);
  EXPECT_EQ(summary.best_valid_loss, 3.75);
  EXPECT_EQ(summary.best_valid_word_ppl, 42.5);
  EXPECT_EQ(summary.best_valid_step, 20);
  EXPECT_EQ(summary.tokens_per_second, 20000.0);
  EXPECT_EQ(summary.seconds, 1080.0);
}

TEST_F(Runs, SummaryOfARunInProgressLeavesOutAnUnfinishedLine) {
  const std::string next = metrics_line(metrics_of(40, 9.0));
  for (const size_t size : {size_t{1}, next.size() / 2, next.size()}) {
    write_run("a", "", metrics_text() + next.substr(0, size));
    EXPECT_EQ(summarize_run(scratch_ / "a").step, 30);
  }
  write_run("a", "", metrics_text() + next + "\n");
  EXPECT_EQ(summarize_run(scratch_ / "a").step, 40);
}

TEST_F(Runs, SummarySkipsNullsAndCountsDamagedLines) {
  write_run("a", "",
            metrics_text() + "{\"step\":40,\"tokens\":7,\"loss\":null,\"valid_loss\":null}\n" +
                "no JSON\n[1]\n{\"step\":\"x\"}\n");
  const RunSummary summary = summarize_run(scratch_ / "a");
  EXPECT_EQ(summary.step, 40);
  EXPECT_EQ(summary.loss, 3.25);
  EXPECT_EQ(summary.best_valid_loss, 3.75);
  EXPECT_EQ(summary.damaged, 3);
}

TEST_F(Runs, SummaryPrefersTheMeanLoss) {
  write_run("a", "",
            metrics_text() + "{\"step\":40,\"loss\":9.0,\"loss_mean\":3.125}\n" +
                "{\"step\":50,\"loss\":null,\"loss_mean\":null}\n");
  EXPECT_EQ(summarize_run(scratch_ / "a").loss, 3.125);
}

TEST_F(Runs, SummaryWithoutMetricsIsRefused) {
  write_run("a", "", "{\"step\":1");
  EXPECT_EQ(message_of<DataError>([&] { summarize_run(scratch_ / "a"); }),
            (scratch_ / "a") + "/metrics.jsonl: has no metrics yet");
  EXPECT_TRUE(contains(message_of<DataError>([&] { summarize_run(scratch_ / "b"); }),
                       "b/metrics.jsonl: cannot be read: No such file"));
}

TEST_F(Runs, FindsRunsAtEveryDepthButNotInCheckpoints) {
  for (const char* name : {"b/deep/er", "a", "a/inner", "a/checkpoints/step-1"}) {
    write_run(name, "", metrics_text());
  }
  std::filesystem::create_directory_symlink(scratch_ / "a", scratch_ / "link");
  EXPECT_EQ(
      find_runs(scratch_.path()),
      (std::vector<std::string>{scratch_ / "a", scratch_ / "a/inner", scratch_ / "b/deep/er"}));
  EXPECT_EQ(find_runs(scratch_ / "a/inner"), std::vector<std::string>{scratch_ / "a/inner"});
}

TEST_F(Runs, TableShowsFiguresAndDifferences) {
  write_run("alibi", config_of(1, Position::kAlibi), metrics_text());
  write_run("rope", config_of(2, Position::kRope), metrics_line(metrics_of(10, 4.0)) + "\n");
  const Result result = run(scratch_.path());
  EXPECT_EQ(result.code, ExitCode::kOk) << result.error;
  EXPECT_EQ(result.output,
            "run     step  state    loss   valid  word ppl  tok/s     h\n"
            "alibi  30/30   done  3.2500  3.7500     42.50  20.0k  0.30\n"
            "    model.position=alibi  model.stable_mask.gamma=slopes  train.seed=1\n"
            "rope   10/30   open  4.0000       -         -  10.0k  0.10\n"
            "    model.position=rope  model.stable_mask.gamma=1.0  train.seed=2\n");
}

TEST_F(Runs, TableOfOneRunIsNamedByItsFolder) {
  write_run("only", config_of(1, Position::kRope), metrics_text());
  for (const char* name : {"only", "only/"}) {
    const std::vector<std::string> lines = lines_of(run(scratch_ / name).output);
    ASSERT_EQ(lines.size(), 2U);
    EXPECT_TRUE(lines[1].starts_with("only  30/30")) << lines[1];
  }
}

TEST_F(Runs, TableFitsEightyColumns) {
  const std::string name = "långa/" + std::string(150, 'x') + "-end";
  Config config;
  config.data = {{std::string(200, 'y')}, "valid.shard", "tokenizer.model"};
  config.train.steps = 100000000;
  resolve(config);
  write_run(name, dump_config(config), metrics_text());
  write_run("broken", "{", "");
  write_run("plain", config_of(3, Position::kNone), metrics_text());
  const Result result = run(scratch_.path());
  for (const std::string& line : lines_of(result.output)) {
    EXPECT_TRUE(is_utf8(line)) << line;
    const auto characters = std::count_if(line.begin(), line.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    });
    EXPECT_LE(characters, 80) << line;
  }
  EXPECT_TRUE(contains(result.output, "…")) << result.output;
  EXPECT_TRUE(contains(result.output, "-end  30/100000000")) << result.output;
}

TEST_F(Runs, BrokenRunsAreLinesWithTheReason) {
  write_run("a", config_of(1, Position::kRope), metrics_text());
  write_run("b", config_of(1, Position::kRope), "");
  write_run("c", "{\"version\": 999}", metrics_text());
  write_run("d", config_of(1, Position::kRope), metrics_text());
  std::filesystem::remove(scratch_ / "d/config.json");
  const Result result = run(scratch_.path() + " --json");
  EXPECT_EQ(result.code, ExitCode::kOk) << result.error;
  const auto runs = nlohmann::json::parse(result.output)["runs"];
  ASSERT_EQ(runs.size(), 4U);
  EXPECT_TRUE(runs[0]["problem"].is_null());
  EXPECT_TRUE(contains(runs[1]["problem"], "has no metrics yet"));
  EXPECT_TRUE(runs[1]["step"].is_null());
  EXPECT_TRUE(contains(runs[2]["problem"], "version")) << runs[2];
  EXPECT_EQ(runs[2]["step"], 30);
  EXPECT_EQ(runs[2]["finished"], false);
  EXPECT_TRUE(contains(runs[3]["problem"], "d/config.json")) << runs[3];
  EXPECT_EQ(lines_of(run(scratch_.path()).output).size(), 1U + 4U + 3U);
}

TEST_F(Runs, CsvAndJsonHoldEveryFigureAndField) {
  write_run("a,\"b\"", config_of(1, Position::kAlibi), metrics_text());
  write_run("c", config_of(2, Position::kAlibi), metrics_line(metrics_of(10, 4.0)) + "\n");
  const std::vector<std::string> csv = lines_of(run(scratch_.path() + " --csv").output);
  ASSERT_EQ(csv.size(), 3U);
  EXPECT_TRUE(csv[0].starts_with("run,path,step,steps,finished,tokens,loss,best_valid_loss,"));
  EXPECT_TRUE(contains(csv[0], ",model.stable_mask.gamma,")) << csv[0];
  EXPECT_TRUE(csv[1].starts_with("\"a,\"\"b\"\"\",")) << csv[1];
  EXPECT_TRUE(contains(csv[1], ",30,30,true,30720,3.25,3.75,42.5,20,20000.0,1080.0,0,,")) << csv[1];
  EXPECT_TRUE(contains(csv[2], ",10,30,false,10240,4.0,,,,10000.0,360.0,0,,")) << csv[2];

  const auto json = nlohmann::json::parse(run(scratch_.path() + " --json").output);
  EXPECT_EQ(json["differing"], nlohmann::json({"train.seed"}));
  EXPECT_EQ(json["runs"][0]["config"]["train.seed"], 1);
  EXPECT_EQ(json["runs"][0]["config"]["model.position"], "alibi");
  EXPECT_EQ(json["runs"][0]["best_valid_step"], 20);
  EXPECT_TRUE(json["runs"][1]["best_valid_loss"].is_null());
}

TEST_F(Runs, ANameThatIsNotUtf8IsListed) {
  write_run("caf\xE9", config_of(1, Position::kAlibi), metrics_text());
  for (const char* form : {"", " --csv", " --json"}) {
    const Result result = run(scratch_.path() + form);
    EXPECT_EQ(result.code, ExitCode::kOk) << result.error;
    EXPECT_TRUE(contains(result.output, "caf")) << result.output;
    EXPECT_TRUE(is_utf8(result.output)) << result.output;
  }
}

TEST_F(Runs, ConfigsOfOlderVersionsCompareByMeaning) {
  write_run("now", config_of(1, Position::kAlibi), metrics_text());
  auto old = nlohmann::json::parse(config_of(1, Position::kAlibi));
  old["version"] = 1;
  old["model"]["stable_mask"].erase("beyond");
  old["model"].erase("rope_scaling");
  old["train"].erase("tensorboard");
  old["train"].erase("sample_prompts");
  write_run("old", old.dump(), metrics_text());
  const auto json = nlohmann::json::parse(run(scratch_.path() + " --json").output);
  EXPECT_TRUE(json["runs"][1]["problem"].is_null()) << json["runs"][1];
  EXPECT_EQ(json["differing"], nlohmann::json({"model.stable_mask.beyond"}));
}

TEST_F(Runs, RefusesWhatHoldsNoRun) {
  EXPECT_EQ(run(scratch_ / "none").code, ExitCode::kData);
  EXPECT_EQ(run(scratch_ / "none").error,
            (scratch_ / "none") + ": is no folder; name one that holds runs");
  EXPECT_EQ(run(scratch_.path()).error,
            scratch_.path() + ": holds no run, which is a folder with metrics.jsonl");
  EXPECT_EQ(run(scratch_.path() + " --csv --json").code, ExitCode::kConfig);
}

}  // namespace
}  // namespace stablemask
