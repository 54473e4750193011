#include <gtest/gtest.h>

#include <limits>

#include "stablemask/base/log.h"
#include "tests/config/config_problems.h"

namespace stablemask {
namespace {

TrainConfig train_of(const std::string& text, const Strings& overrides = {}) {
  return parse_config(text, "c.json", overrides).train;
}

/// The steps of a run over `sequences` sequences of 8 tokens, 4 a step.
int64_t steps_of(double epochs, double tokens, int64_t sequences) {
  TrainConfig train;
  train.context = 8;
  train.batch = 4;
  train.epochs = epochs;
  train.tokens = tokens;
  resolve_steps(train, sequences);
  EXPECT_EQ(train.epochs, 0);
  EXPECT_EQ(train.tokens, 0);
  return train.steps;
}

TEST(RunLength, IsRoundedUpToWholeSteps) {
  EXPECT_EQ(steps_of(1, 0, 40), 10);
  EXPECT_EQ(steps_of(1, 0, 41), 11);
  EXPECT_EQ(steps_of(2.5, 0, 40), 25);
  EXPECT_EQ(steps_of(0.1, 0, 120), 3) << "0.1 · 120 is not more than 12";
  EXPECT_EQ(steps_of(1e-9, 0, 40), 1);
  EXPECT_EQ(steps_of(0, 3200, 40), 100);
  EXPECT_EQ(steps_of(0, 3201, 40), 101);
  EXPECT_EQ(steps_of(0, 1, 40), 1);
  EXPECT_EQ(steps_of(0, 0, 40), TrainConfig().steps) << "the steps that are stated stay";
}

TEST(RunLength, TooLongARunIsRefused) {
  const auto problem = [](double epochs, double tokens) -> std::string {
    TrainConfig train;
    train.epochs = epochs;
    train.tokens = tokens;
    try {
      resolve_steps(train, 1000000000);
      return "";
    } catch (const ConfigError& error) {
      return error.what();
    }
  };
  EXPECT_EQ(problem(1e12, 0),
            "/train/epochs: makes 3.125e+19 steps of 3.277e+04 tokens, more than a run can have; "
            "lower it");
  EXPECT_EQ(problem(1, 1),
            "/train/epochs: the length of the run is stated twice; keep one of train.epochs and "
            "train.tokens");
  EXPECT_EQ(problem(0, 9e15), "");
}

TEST(RunLength, IsStatedInOneUnit) {
  const std::string twice =
      ": the length of the run is stated twice; keep one of train.steps, train.epochs and "
      "train.tokens";
  const std::vector<Case> cases = {
      {R"({"train": {"epochs": 2}})", ""},
      {R"({"train": {"tokens": 2e9}})", ""},
      {R"({"train": {"steps": 0, "epochs": 0.5}})", ""},
      {R"({"train": {"steps": 5, "epochs": 2}})", "c.json:1:34: /train/epochs" + twice},
      {R"({"train": {"tokens": 5, "epochs": 2}})", "c.json:1:35: /train/epochs" + twice},
      {R"({"train": {"epochs": -1}})",
       "c.json:1:22: /train/epochs: expected a number from 0 to 1000000000000, found -1"},
  };
  for (const Case& test : cases) EXPECT_EQ(problems(test.text), test.message) << test.text;
  EXPECT_EQ(problems("{}", {"train.steps=3", "train.tokens=7"}),
            "--set train.tokens=7 and --set train.steps=3: /train/tokens" + twice);
}

TEST(RunLength, AnOverrideReplacesTheFilesWhateverItsUnit) {
  EXPECT_EQ(train_of(R"({"train": {"epochs": 2}})").steps, 0);
  const TrainConfig steps = train_of(R"({"train": {"epochs": 2}})", {"train.steps=9"});
  EXPECT_EQ(steps.steps, 9);
  EXPECT_EQ(steps.epochs, 0);
  const TrainConfig tokens = train_of(R"({"train": {"steps": 70}})", {"train.tokens=9"});
  EXPECT_EQ(tokens.steps, 0);
  EXPECT_EQ(tokens.tokens, 9);
}

TEST(RunLength, UnresolvedConfigReadsBackEqualAndIsNotWarnedOf) {
  const Config config = parse_config(R"({"train": {"epochs": 2.5}})", "c");
  const std::string text = dump_config(config);
  EXPECT_EQ(dump_config(parse_config(text, "dump")), text);
  EXPECT_EQ(config_warnings(config), Strings());
}

TEST(RunLength, MaskWarmupIsShortenedToTheRunAndNeedsAMask) {
  const Config config = parse_config(R"({"train": {"steps": 300, "mask_warmup_steps": 400}})", "c");
  EXPECT_EQ(config.train.resolved_mask_warmup_steps(), 300);
  EXPECT_EQ(config_warnings(config),
            Strings{"train.mask_warmup_steps 400 is more than train.steps 300: mask warm-up "
                    "shortened to 300 steps"});
  EXPECT_EQ(problems(R"({"model": {"stable_mask": false}, "train": {"mask_warmup_steps": 4}})"),
            "c.json:1:66: /train/mask_warmup_steps: needs model.stable_mask, the mask that the run "
            "warms up");
}

}  // namespace
}  // namespace stablemask
