#include "stablemask/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace stablemask {
namespace {

constexpr int64_t kSteps = 1000;
constexpr double kPeak = 2e-3;

ScheduleConfig schedule(ScheduleKind kind) {
  ScheduleConfig config;
  config.kind = kind;
  config.warmup_steps = 100;
  config.final_lr_ratio = 0.1;
  config.decay_steps = 300;
  return config;
}

double at(ScheduleKind kind, int64_t step) {
  return learning_rate(schedule(kind), kPeak, step, kSteps);
}

class EveryKind : public ::testing::TestWithParam<ScheduleKind> {};

TEST_P(EveryKind, WarmsUpLinearlyToThePeak) {
  EXPECT_DOUBLE_EQ(at(GetParam(), 1), kPeak / 100);
  EXPECT_DOUBLE_EQ(at(GetParam(), 50), kPeak / 2);
  EXPECT_DOUBLE_EQ(at(GetParam(), 100), kPeak);
}

TEST_P(EveryKind, NeverRisesAfterWarmup) {
  for (int64_t step = 101; step <= kSteps; ++step) {
    EXPECT_LE(at(GetParam(), step), at(GetParam(), step - 1)) << "step " << step;
  }
}

TEST_P(EveryKind, EndsAtTheFinalRatioAndStaysThere) {
  const double expected = GetParam() == ScheduleKind::kConstant ? kPeak : 0.1 * kPeak;
  EXPECT_DOUBLE_EQ(at(GetParam(), kSteps), expected);
  EXPECT_DOUBLE_EQ(at(GetParam(), kSteps + 7), expected);
}

INSTANTIATE_TEST_SUITE_P(Schedule, EveryKind,
                         ::testing::Values(ScheduleKind::kCosine, ScheduleKind::kLinear,
                                           ScheduleKind::kWsd, ScheduleKind::kConstant));

TEST(Schedule, CosineIsHalfWayDownInTheMiddle) {
  EXPECT_NEAR(at(ScheduleKind::kCosine, 550), kPeak * (0.1 + 0.9 / 2), 1e-15);
  const double quarter = 0.1 + 0.9 * 0.5 * (1 + std::sqrt(0.5));
  EXPECT_NEAR(at(ScheduleKind::kCosine, 325), kPeak * quarter, 1e-15);
}

TEST(Schedule, LinearIsAStraightLine) {
  EXPECT_NEAR(at(ScheduleKind::kLinear, 400), kPeak * (1 - 0.9 / 3), 1e-15);
}

TEST(Schedule, WsdHoldsThePeakUntilItsDecay) {
  EXPECT_DOUBLE_EQ(at(ScheduleKind::kWsd, 700), kPeak);
  EXPECT_NEAR(at(ScheduleKind::kWsd, 850), kPeak * 0.55, 1e-15);
  ScheduleConfig fifth = schedule(ScheduleKind::kWsd);
  fifth.decay_steps = 0;
  EXPECT_DOUBLE_EQ(learning_rate(fifth, kPeak, 800, kSteps), kPeak);
  EXPECT_LT(learning_rate(fifth, kPeak, 801, kSteps), kPeak);
}

TEST(Schedule, WithoutWarmupBeginsAtThePeak) {
  ScheduleConfig config = schedule(ScheduleKind::kCosine);
  config.warmup_steps = 0;
  EXPECT_NEAR(learning_rate(config, kPeak, 1, kSteps), kPeak, 1e-7);
}

TEST(Schedule, WarmupAsLongAsTheRunEndsAtThePeak) {
  ScheduleConfig config = schedule(ScheduleKind::kLinear);
  config.warmup_steps = 10;
  EXPECT_DOUBLE_EQ(learning_rate(config, kPeak, 9, 10), kPeak * 0.9);
  EXPECT_DOUBLE_EQ(learning_rate(config, kPeak, 10, 10), kPeak);
}

TEST_P(EveryKind, WarmupLongerThanTheRunIsShortenedToIt) {
  const ScheduleConfig config = schedule(GetParam());
  for (int64_t step = 1; step <= 10; ++step) {
    EXPECT_DOUBLE_EQ(learning_rate(config, kPeak, step, 10), kPeak * static_cast<double>(step) / 10)
        << "step " << step;
  }
}

TEST(Schedule, WsdDecayLongerThanTheRestBeginsAfterTheWarmup) {
  EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kWsd), kPeak, 100, 200), kPeak);
  EXPECT_NEAR(learning_rate(schedule(ScheduleKind::kWsd), kPeak, 150, 200), kPeak * 0.55, 1e-15);
}

}  // namespace
}  // namespace stablemask
