#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

#include "stablemask/base/error.h"

namespace stablemask::ops {

/// The message of an out-of-memory failure of LibTorch or of the host; "" for any other error.
std::string out_of_memory_message(const std::exception& error);

/// Runs `work` and returns its result. Turns an out-of-memory failure into an OutOfMemoryError
/// whose message ends with `hint`: which setting to lower. Other exceptions pass through.
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

/// Peak memory in bytes: allocated by the caching allocator for a GPU, the process's peak resident
/// set size for the CPU.
int64_t peak_memory_bytes(at::Device device);

}  // namespace stablemask::ops
