#pragma once

#include <nccl.h>

#include <string>

namespace stablemask::dist {

/// NCCL's functions, looked up at run time in the library that LibTorch has loaded: nothing links
/// to it.
class NcclLibrary {
 public:
  /// Throws ConfigError when there is no libnccl.so.2, when it lacks one of the functions, or when
  /// its major version is not that of the nccl.h of this build. The library stays loaded.
  static const NcclLibrary& get();

  /// "WHAT: REASON" for a result other than ncclSuccess, in one line. `comm` may be null.
  std::string message(const char* what, ncclResult_t result, ncclComm_t comm) const;

  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclReduceScatter) reduce_scatter = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;

 private:
  NcclLibrary();
};

}  // namespace stablemask::dist
