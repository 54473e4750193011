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
  EXPECT_EQ(config.train.micro_batch, 0) << "depends on the number of processes";
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

TEST(MicroBatch, DefaultIsTheShareOfAProcess) {
  const TrainConfig train = parse_config("{}", "c", {"train.batch=24"}).train;
  EXPECT_EQ(train.resolved_micro_batch(1), 24);
  EXPECT_EQ(train.resolved_micro_batch(3), 8);
  const TrainConfig stated =
      parse_config("{}", "c", {"train.batch=24", "train.micro_batch=4"}).train;
  EXPECT_EQ(stated.resolved_micro_batch(1), 4);
  EXPECT_EQ(stated.resolved_micro_batch(3), 4);
}

std::string refusal_of_shares(int64_t batch, int64_t micro_batch, int64_t processes) {
  TrainConfig train;
  train.batch = batch;
  train.micro_batch = micro_batch;
  try {
    require_equal_shares(train, processes);
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

TEST(MicroBatch, SharesOfProcessesMustBeEqual) {
  for (const int64_t processes : {1, 2, 3, 6}) {
    EXPECT_EQ(refusal_of_shares(24, 0, processes), "");
    EXPECT_EQ(refusal_of_shares(24, 4, processes), "");
  }
  EXPECT_EQ(refusal_of_shares(30, 0, 4),
            "/train/batch: 30 sequences are not equal shares for 4 processes; use train.batch 28 "
            "or train.batch 32, or another number of processes");
  EXPECT_EQ(refusal_of_shares(32, 12, 2),
            "/train/batch: 32 sequences are not equal shares of micro-batches of 12 for 2 "
            "processes; use train.micro_batch 8 or train.batch 24 or train.batch 48, or another "
            "number of processes");
  EXPECT_EQ(refusal_of_shares(3, 1, 4),
            "/train/batch: 3 sequences are not equal shares of micro-batches of 1 for 4 "
            "processes; use train.batch 4, or another number of processes");
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
