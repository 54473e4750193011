#include "src/ops/cuda/trials.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <vector>

namespace stablemask::ops::cuda {
namespace {

constexpr double kFails = std::numeric_limits<double>::infinity();

/// A stopwatch for candidates of known times on a device that slows down by `drift` a launch.
struct Device {
  std::vector<double> ms;
  double drift = 0;
  std::vector<int> launches = std::vector<int>(ms.size(), 0);
  double busy = 0;  ///< milliseconds

  size_t fastest() {
    return fastest_candidate(ms.size(), [this](const std::vector<Burst>& bursts) {
      std::vector<double> times;
      for (const Burst& burst : bursts) {
        double sum = 0;
        for (int i = 0; i < burst.launches; ++i) {
          const int before = std::accumulate(launches.begin(), launches.end(), 0);
          sum += ms[burst.candidate] * (1 + drift * before);
          ++launches[burst.candidate];
        }
        times.push_back(sum / burst.launches);
        if (sum < kFails) busy += sum;
      }
      return times;
    });
  }
};

TEST(Trials, FindTheFastest) {
  for (size_t best = 0; best < 6; ++best) {
    Device device{.ms = {1.05, 1.04, 1.03, 1.06, 1.05, 1.04}};
    device.ms[best] = 1.0;
    EXPECT_EQ(device.fastest(), best);
  }
}

/// Each round goes through the candidates in the other direction, so none gains by its place.
TEST(Trials, DriftDoesNotDecide) {
  for (const double drift : {1e-3, -1e-4}) {
    for (size_t best = 0; best < 3; ++best) {
      Device device{.ms = {1.004, 1.004, 1.004}, .drift = drift};
      device.ms[best] = 1.0;
      EXPECT_EQ(device.fastest(), best) << drift;
    }
  }
}

TEST(Trials, SlowCandidatesAreLaunchedTwice) {
  Device device{.ms = {3.0, 1.0, 1.5, 1.01}};
  EXPECT_EQ(device.fastest(), 1u);
  EXPECT_EQ(device.launches[0], 2 + 2) << "the first one's time says how many make a burst";
  EXPECT_EQ(device.launches[2], 2);
  EXPECT_GT(device.launches[3], 2);
}

TEST(Trials, OneThatIsClearlyFastestNeedsNoMore) {
  Device device{.ms = {3.0, 1.0, 1.5, 1.2}};
  EXPECT_EQ(device.fastest(), 1u);
  EXPECT_EQ(device.launches, (std::vector<int>{2 + 2, 2, 2, 2}));
}

TEST(Trials, TakeMillisecondsForGemmsOfAnyLength) {
  for (const double ms : {0.001, 0.1, 1.0, 5.0}) {
    Device device{.ms = std::vector<double>(24, ms)};
    device.fastest();
    EXPECT_LT(device.busy, 60 + 80 * ms) << ms;
  }
}

TEST(Trials, FailingCandidatesAreLeftOut) {
  Device device{.ms = {kFails, 1.02, kFails, 1.0}};
  EXPECT_EQ(device.fastest(), 3u);
  Device failing{.ms = {kFails, kFails}};
  EXPECT_EQ(failing.fastest(), 0u);
  Device single{.ms = {2.0}};
  EXPECT_EQ(single.fastest(), 0u);
}

}  // namespace
}  // namespace stablemask::ops::cuda
