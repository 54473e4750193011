#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace stablemask::ops::cuda {

/// So many launches of one candidate in a row.
struct Burst {
  size_t candidate;
  int launches;
};

/// Launches the bursts one after another and returns the milliseconds of one launch of each,
/// infinity for a candidate that cannot be launched. The device is not left idle in between.
using Stopwatch = std::function<std::vector<double>(const std::vector<Burst>& bursts)>;

/// The fastest of `count` > 0 candidates, which compute the same. All are timed briefly, after one
/// launch that loads what they need. Those that come close to the fastest are then timed in turn,
/// some milliseconds at a time, each round in the other direction, because a GPU's clock drifts;
/// the lowest sum wins. Nearly all of it runs on a GPU that is busy without a pause, as in
/// training. 0 when all fail.
size_t fastest_candidate(size_t count, const Stopwatch& time);

}  // namespace stablemask::ops::cuda
