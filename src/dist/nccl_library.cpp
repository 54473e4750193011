#include "src/dist/nccl_library.h"

#include <dlfcn.h>

#include "stablemask/base/error.h"

namespace stablemask::dist {
namespace {

constexpr const char* kNcclFile = "libnccl.so.2";

/// The major version in a number such as 22809; of releases since 2.9.
constexpr int nccl_major(int version) { return version / 10000; }

template <typename Function>
void look_up(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) {
    throw ConfigError(std::string(kNcclFile) + " has no function " + name +
                      "; install NCCL 2.18 or newer");
  }
}

}  // namespace

NcclLibrary::NcclLibrary() {
  void* const library = ::dlopen(kNcclFile, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw ConfigError(
        std::string("several GPUs need NCCL: ") + ::dlerror() +
        "; install the Python package nvidia-nccl-cu13 beside torch, or add the folder of " +
        kNcclFile + " to LD_LIBRARY_PATH");
  }
  look_up(library, "ncclGetVersion", get_version);
  int version = 0;
  if (get_version(&version) != ncclSuccess || nccl_major(version) != NCCL_MAJOR) {
    throw ConfigError(std::string(kNcclFile) + " is version " + std::to_string(version) +
                      ", this build is for " + std::to_string(NCCL_VERSION_CODE) +
                      " (nccl.h); install that one, or configure the build again");
  }
  look_up(library, "ncclGetUniqueId", get_unique_id);
  look_up(library, "ncclCommInitRankConfig", comm_init_rank_config);
  look_up(library, "ncclCommDestroy", comm_destroy);
  look_up(library, "ncclCommAbort", comm_abort);
  look_up(library, "ncclCommGetAsyncError", comm_get_async_error);
  look_up(library, "ncclGetErrorString", get_error_string);
  look_up(library, "ncclGetLastError", get_last_error);
  look_up(library, "ncclAllReduce", all_reduce);
  look_up(library, "ncclReduceScatter", reduce_scatter);
  look_up(library, "ncclAllGather", all_gather);
  look_up(library, "ncclBroadcast", broadcast);
}

const NcclLibrary& NcclLibrary::get() {
  static const NcclLibrary library;
  return library;
}

std::string NcclLibrary::message(const char* what, ncclResult_t result, ncclComm_t comm) const {
  const std::string reason = get_error_string(result);
  const char* const last = get_last_error(comm);
  const std::string detail = last == nullptr ? "" : last;
  const std::string first_line = detail.substr(0, detail.find('\n'));
  return std::string("NCCL: ") + what + ": " + reason +
         (first_line.empty() ? "" : " (" + first_line + ")");
}

}  // namespace stablemask::dist
