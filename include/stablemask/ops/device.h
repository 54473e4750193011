#pragma once

#include <string>

namespace stablemask::ops {

/// "" when the current GPU can run this build's kernels; else why not, with what to do, in half a
/// sentence: built without CUDA, no device, or a device of another architecture.
std::string cuda_problem();

}  // namespace stablemask::ops
