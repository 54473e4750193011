#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace stablemask::bench {

/// Name of the profiler's scope around a step, which is no kernel.
inline constexpr const char* kStepScope = "optimizer step";

/// GPU time of one part of a training step: all launches of the kernels that belong to it.
struct KernelTime {
  std::string part;    ///< "matrix products", "attention", …; "other" for unknown kernels
  std::string kernel;  ///< shortened name of its kernel with the most time
  int64_t launches = 0;
  double milliseconds = 0;
};

/// Runs `work` under LibTorch's profiler and sums the GPU time of kernels and copies by part of a
/// training step, longest first. Empty if no GPU was used.
std::vector<KernelTime> kernel_times(const std::function<void()>& work);

/// Runs `work` under LibTorch's profiler and writes every operator, kernel and copy with its times
/// to `file`, in the trace format that Perfetto and chrome://tracing read.
void save_trace(const std::string& file, const std::function<void()>& work);

}  // namespace stablemask::bench
