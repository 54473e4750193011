#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/data/loader.h"

namespace stablemask {

/// A batch's tensors on the device that computes. On the CPU they are views of the batch, which
/// must outlive them.
struct DeviceBatch {
  DeviceBatch(const Batch& batch, at::Device device);
  /// Replaces the values by those of a batch of the same shape; the memory stays where it is.
  void copy_from(const Batch& batch);
  at::Tensor tokens, targets;  ///< int64 [B,T]
  at::Tensor document_start;   ///< int64 [B,T], or undefined
};

/// The message of an out-of-memory failure of LibTorch ("" when `error` is something else).
std::string out_of_memory_message(const std::exception& error);

/// Runs `work`; memory that runs out becomes an OutOfMemoryError that says what to lower.
template <class Work>
auto with_memory_hint(const char* hint, Work&& work) -> decltype(work()) {
  try {
    return std::forward<Work>(work)();
  } catch (const std::exception& error) {
    const std::string message = out_of_memory_message(error);
    if (message.empty()) throw;
    throw OutOfMemoryError("out of memory: " + message + "; " + hint);
  }
}

/// Most bytes ever held: the allocator's on a GPU, the process's resident set on the CPU.
int64_t peak_memory_bytes(at::Device device);

}  // namespace stablemask
