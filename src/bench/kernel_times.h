#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace stablemask::bench {

/// What one kind of work on the GPU took: all launches of the kernels whose names have something in
/// common.
struct KernelTime {
  std::string part;    ///< "matrix products", "attention", …; "other" for what has no better name
  std::string kernel;  ///< its longest kernel's name, shortened
  int64_t launches = 0;
  double milliseconds = 0;
};

/// Runs `work` under LibTorch's profiler and adds up the GPU's kernels and copies by part of a
/// training step, longest first. Empty where no GPU worked.
std::vector<KernelTime> kernel_times(const std::function<void()>& work);

}  // namespace stablemask::bench
