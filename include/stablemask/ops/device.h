#pragma once

#include <c10/core/Device.h>

#include <string>

namespace stablemask::ops {

/// "" when the current GPU can run this build's kernels; otherwise the reason and the remedy, as a
/// clause for an error message: built without CUDA, no device, or another GPU architecture.
std::string cuda_problem();

/// The name that the CUDA driver reports, "NVIDIA H100 80GB HBM3" for example; "cpu" for the CPU.
std::string device_name(c10::Device device);

}  // namespace stablemask::ops
