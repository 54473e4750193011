#include "src/dist/nccl_communicator.h"

#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <exception>
#include <thread>
#include <utility>

#include "stablemask/base/error.h"

namespace stablemask::dist {
namespace {

/// ncclCommAbort stops the kernels at once but returns only when the graphs that contain
/// collectives have been destroyed, so that the thread that owns them must go on meanwhile.
constexpr std::chrono::milliseconds kAbortPatience{500};
/// In the end the graphs are gone, and what remains is to free memory.
constexpr std::chrono::milliseconds kEndPatience{10000};

}  // namespace

NcclCommunicator::NcclCommunicator(const ncclUniqueId& id, int64_t rank, int64_t size, int max_ctas)
    : nccl_(NcclLibrary::get()), device_(c10::cuda::current_device()) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 1;
  if (max_ctas > 0) config.maxCTAs = max_ctas;
  const ncclResult_t result = nccl_.comm_init_rank_config(&comm_, static_cast<int>(size), id,
                                                          static_cast<int>(rank), &config);
  if (result == ncclSuccess) return;
  throw ConfigError(nccl_.message("cannot connect the GPUs", result, nullptr) +
                    "; set NCCL_DEBUG=INFO to see why");
}

NcclCommunicator::~NcclCommunicator() {
  abort();
  if (ended_.valid()) ended_.wait_for(kEndPatience);
}

void NcclCommunicator::abort() noexcept { end(nccl_.comm_abort, kAbortPatience); }

void NcclCommunicator::close() noexcept { end(nccl_.comm_destroy, kEndPatience); }

void NcclCommunicator::end(decltype(&ncclCommDestroy) how,
                           std::chrono::milliseconds patience) noexcept {
  if (comm_ == nullptr) return;
  ncclComm_t comm = std::exchange(comm_, nullptr);
  try {
    std::promise<void> promise;
    ended_ = promise.get_future();
    std::thread([how, comm, device = device_, ended = std::move(promise)]() mutable {
      // Else NCCL, which restores the current device, would occupy memory of the first GPU.
      if (cudaSetDevice(device) == cudaSuccess) how(comm);
      ended.set_value();
    }).detach();
    ended_.wait_for(patience);
  } catch (const std::exception&) {  // no thread can be started: the end of the process frees all
  }
}

ncclResult_t NcclCommunicator::error() const {
  ncclResult_t error = ncclSuccess;
  const ncclResult_t asked = nccl_.comm_get_async_error(comm_, &error);
  if (asked != ncclSuccess) return asked;
  return error == ncclInProgress ? ncclSuccess : error;
}

}  // namespace stablemask::dist
