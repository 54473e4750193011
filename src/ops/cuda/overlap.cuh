#pragma once

#include <cuda_runtime.h>

/// Programmatic dependent launch (compute capability 9.0): a kernel launched with kOverlapped may
/// start when every thread block of the kernel before it has called let_next_start() or ended.

namespace stablemask::ops::cuda {

/// Blocks until the kernels enqueued before have ended and their writes are visible. To be called
/// before anything is read that they write, and before anything is written.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Allows the next kernel to start as soon as there is room; it does not make results visible to
/// it.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// The launch attribute of a kernel that calls wait_for_previous().
inline cudaLaunchAttribute overlapped_launch() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

}  // namespace stablemask::ops::cuda
