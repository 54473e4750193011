#pragma once

#include "stablemask/base/stop.h"
#include "stablemask/dist/group.h"

namespace stablemask::bench {

/// Waits for all processes, so that what follows begins in all of them at the same time. Throws
/// Stopped in every one when one of them was asked to stop.
inline void start_together(dist::Group& group) {
  const auto signal = static_cast<int>(group.agree(stop_signal()));
  if (signal != 0) throw Stopped(signal, "benchmarking");
}

}  // namespace stablemask::bench
