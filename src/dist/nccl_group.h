#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "src/dist/host_group.h"

namespace stablemask::dist {

/// A group whose collectives run on the GPU `device`, one process for each. Called by all processes
/// at the same time. Throws ConfigError when this build has no NCCL, when its library cannot be
/// loaded or does not fit, and when two processes have one GPU; PeerLostError when another process
/// is lost meanwhile.
std::shared_ptr<Group> make_nccl_group(HostPart part, c10::Device device);

}  // namespace stablemask::dist
