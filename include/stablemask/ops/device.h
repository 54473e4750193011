#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace stablemask::ops {

/// GPUs that this process may use; 0 in a build without CUDA.
int64_t gpu_count();

/// Makes `device` the current one of the calling thread, if it is a GPU: for code that takes the
/// current GPU where no tensor names one. LibTorch's threads of a backward pass set their own.
void use_device(c10::Device device);

/// "" when the current GPU can run this build's kernels; otherwise the reason and the remedy, as a
/// clause for an error message: built without CUDA, no device, or another GPU architecture.
std::string cuda_problem();

/// The name that the CUDA driver reports, "NVIDIA H100 80GB HBM3" for example; "cpu" for the CPU.
std::string device_name(c10::Device device);

/// Whether the CPU multiplies bf16 numbers faster than fp32 ones: x86 with AVX512-BF16, which those
/// with AMX have too.
bool cpu_has_bf16();

}  // namespace stablemask::ops
