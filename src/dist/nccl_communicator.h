#pragma once

#include <chrono>
#include <future>
#include <string>

#include "src/dist/nccl_library.h"

namespace stablemask::dist {

/// Owns an NCCL communicator and ends it without ever waiting for long.
class NcclCommunicator {
 public:
  /// Connects the current GPU with those of the other processes, which construct theirs at the same
  /// time; waits for them inside NCCL. `max_ctas`: thread blocks that a collective may occupy; 0:
  /// as many as NCCL chooses. Throws ConfigError when NCCL cannot connect them.
  NcclCommunicator(const ncclUniqueId& id, int64_t rank, int64_t size, int max_ctas);
  /// Aborts if nothing else was called before.
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Stops the collectives that are running on the GPU, also those of graphs.
  void abort() noexcept;
  /// Ends as planned: when the collectives are done and the graphs that contain some destroyed.
  void close() noexcept;

  ncclComm_t get() const { return comm_; }  ///< null after abort() and close()
  const NcclLibrary& nccl() const { return nccl_; }
  /// An error that NCCL has met since, in a collective or a thread of its own. Before the end only.
  ncclResult_t error() const;
  std::string message(const char* what, ncclResult_t result) const {
    return nccl_.message(what, result, comm_);
  }

 private:
  /// Calls `how` in a thread and waits for its end, but not longer than `patience`.
  void end(decltype(&ncclCommDestroy) how, std::chrono::milliseconds patience) noexcept;

  const NcclLibrary& nccl_;
  const int device_;
  ncclComm_t comm_ = nullptr;
  std::future<void> ended_;  // set by the thread of end()
};

}  // namespace stablemask::dist
