#include "src/ops/cuda/trials.h"

#include <algorithm>
#include <cmath>

namespace stablemask::ops::cuda {
namespace {

constexpr double kBriefMs = 0.3;  // a brief timing is as many launches as fit, at least one
constexpr int kMaxBriefLaunches = 4;
constexpr size_t kCloseCandidates = 4;  // at most so many are timed closely,
constexpr double kCloseRatio = 1.06;    // if within this ratio of the fastest
constexpr double kCloseMs = 2.0;
constexpr int kCloseRounds = 4;  // even: as many in either direction
constexpr int kMaxCloseLaunches = 200;

int launches_in(double ms, double of_one, int most) {
  return std::clamp(static_cast<int>(ms / std::max(of_one, 1e-3)), 1, most);
}

/// The time of each candidate.
std::vector<double> brief_times(size_t count, const Stopwatch& time) {
  const double first = time({{0, 1}, {0, 1}}).back();
  const int launches =
      std::isfinite(first) ? launches_in(kBriefMs, first, kMaxBriefLaunches) : kMaxBriefLaunches;
  std::vector<Burst> bursts;
  for (size_t i = 0; i < count; ++i) {
    bursts.push_back({i, 1});
    bursts.push_back({i, launches});
  }
  const std::vector<double> times = time(bursts);
  std::vector<double> brief;
  for (size_t i = 0; i < count; ++i) brief.push_back(times[2 * i + 1]);
  return brief;
}

}  // namespace

size_t fastest_candidate(size_t count, const Stopwatch& time) {
  const std::vector<double> brief = brief_times(count, time);
  std::vector<size_t> close;
  for (size_t i = 0; i < count; ++i) close.push_back(i);
  std::stable_sort(close.begin(), close.end(),
                   [&](size_t a, size_t b) { return brief[a] < brief[b]; });
  const double least = brief[close.front()];
  if (!std::isfinite(least)) return 0;
  close.resize(std::min(count, kCloseCandidates));
  std::erase_if(close, [&](size_t i) { return brief[i] > kCloseRatio * least; });
  if (close.size() == 1) return close.front();

  std::vector<Burst> bursts;
  const int launches = launches_in(kCloseMs, least, kMaxCloseLaunches);
  for (int round = 0; round < kCloseRounds; ++round) {
    for (const size_t i : close) bursts.push_back({i, launches});
    std::reverse(close.begin(), close.end());
  }
  const std::vector<double> times = time(bursts);
  std::vector<double> sums(count, 0.0);
  for (size_t k = 0; k < bursts.size(); ++k) sums[bursts[k].candidate] += times[k];
  return *std::min_element(close.begin(), close.end(),
                           [&](size_t a, size_t b) { return sums[a] < sums[b]; });
}

}  // namespace stablemask::ops::cuda
