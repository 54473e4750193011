#include "src/dist/nccl_group.h"
#include "stablemask/base/error.h"

namespace stablemask::dist {

std::shared_ptr<Group> make_nccl_group(HostPart, c10::Device) {
  throw ConfigError(
      "this build has no NCCL, which several processes on GPUs need; install the Python package "
      "nvidia-nccl-cu13 beside torch and configure the build again, or start one process");
}

}  // namespace stablemask::dist
