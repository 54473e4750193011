#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "stablemask/config/config.h"
#include "tests/config/config_problems.h"

namespace stablemask {
namespace {

TEST(Resolve, ReplacesValuesThatStandForOtherFields) {
  Config config;
  config.train.context = 96;
  config.train.batch = 6;
  resolve(config);
  EXPECT_EQ(config.train.micro_batch, 6);
  EXPECT_EQ(config.eval.window, 96);
  EXPECT_EQ(config.model.stable_mask.mask_length.kind, MaskLengthSpec::Kind::kFixed);
  EXPECT_EQ(config.model.stable_mask.mask_length.length, 96);
}

TEST(Resolve, KeepsStatedValues) {
  Config config;
  config.train.micro_batch = 8;
  config.eval.window = 64;
  config.model.stable_mask.mask_length.kind = MaskLengthSpec::Kind::kSequence;
  resolve(config);
  EXPECT_EQ(config.train.micro_batch, 8);
  EXPECT_EQ(config.eval.window, 64);
  EXPECT_EQ(config.model.stable_mask.mask_length.kind, MaskLengthSpec::Kind::kSequence);
}

TEST(Schedule, WarmupLongerThanTheRunIsShortenedAndComesBackWithMoreSteps) {
  const Config config = parse_config("{}", "c", {"train.steps=10"});
  EXPECT_EQ(config.schedule.warmup_steps, 200);
  EXPECT_EQ(config.schedule.resolved_warmup_steps(config.train.steps), 10);
  EXPECT_EQ(config_warnings(config), Strings{"schedule.warmup_steps 200 is more than train.steps "
                                             "10: warm-up shortened to 10 steps"});
  const Config longer = parse_config(dump_config(config), "c", {"train.steps=1000"});
  EXPECT_EQ(longer.schedule.resolved_warmup_steps(longer.train.steps), 200);
  EXPECT_EQ(config_warnings(longer), Strings{});
}

TEST(Schedule, DecayLongerThanTheRestIsShortened) {
  const std::string wsd =
      R"({"schedule": {"kind": "wsd", "warmup_steps": 100, "decay_steps": 950}})";
  const Config config = parse_config(wsd, "c", {"train.steps=1000"});
  EXPECT_EQ(config.schedule.resolved_decay_steps(1000), 900);
  EXPECT_EQ(config_warnings(config),
            Strings{"schedule.decay_steps 950 is more than the 900 steps after the warm-up: decay "
                    "shortened to 900 steps"});
  EXPECT_EQ(config.schedule.resolved_decay_steps(2000), 950);
  EXPECT_EQ(config.schedule.resolved_decay_steps(50), 0);
  // The default, a fifth of the run, needs no warning.
  const Config fifth =
      parse_config(R"({"schedule": {"kind": "wsd"}, "train": {"steps": 240}})", "c");
  EXPECT_EQ(fifth.schedule.resolved_decay_steps(240), 40);
  EXPECT_EQ(fifth.schedule.resolved_decay_steps(2000), 400);
  EXPECT_EQ(config_warnings(fifth), Strings{});
}

TEST(Schedule, LoadingAFileLogsTheWarningOnceAndParsingNone) {
  const std::string path = testing::TempDir() + "resolve_test.json";
  std::ofstream(path) << R"({"train": {"steps": 10}})";
  testing::internal::CaptureStderr();
  load_config(path);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "stablemask: warning: schedule.warmup_steps 200 is more than train.steps 10: warm-up "
            "shortened to 10 steps\n");
  testing::internal::CaptureStderr();
  parse_config(R"({"train": {"steps": 10}})", "c");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace stablemask
