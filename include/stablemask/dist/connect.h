#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "stablemask/dist/group.h"
#include "stablemask/dist/world.h"

namespace stablemask::dist {

struct ConnectOptions {
  World world;
  at::Device device = at::kCPU;  ///< of this process: NCCL on a GPU, the store on the CPU
  double timeout_s = 600;        ///< longest wait for another process that is alive
  double silence_s = 6;          ///< a process that gives no sign of life for so long is lost
  /// When a process is lost and this one does not come back to the group within some seconds, for
  /// example because it waits inside NCCL: print the error and end the process with exit code 6.
  /// For programs; a library must not.
  bool end_process = false;
};

/// Meets the other processes and returns their group; for a world of one process
/// single_process_group(). The destructor of the group tells the others that this process is done.
/// Throws ConfigError when the store cannot be reached or a process has another size or number than
/// it should, PeerLostError when a process does not come within the timeout.
std::shared_ptr<Group> connect(const ConnectOptions& options);

}  // namespace stablemask::dist
