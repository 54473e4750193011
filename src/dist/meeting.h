#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/dist/watchdog.h"

namespace stablemask::dist {

struct MeetingOptions {
  int64_t rank = 0, size = 1;
  std::string host;           ///< of this process, for the others' messages
  double timeout_s = 600;     ///< longest wait for the others
  bool serves_store = false;  ///< the store ends with this process
};

/// Waits in `store` until all processes have come, and announces this one to their watchdogs.
/// Returns the names of all by rank, "process 2 (gpu7, pid 4711)". Throws ConfigError, in all
/// processes, when two have one rank or different sizes; PeerLostError when some do not come in
/// time or the store fails; Stopped.
std::vector<std::string> meet(c10d::Store& store, const MeetingOptions& options);

}  // namespace stablemask::dist
