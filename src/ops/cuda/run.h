#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

namespace stablemask::ops::cuda {

/// Launches the kernel of a parameter struct on the current stream of x's device. Throws c10::Error
/// that begins with `name` if the launch fails.
template <typename Params>
void run(const char* name, const Params& params, const at::Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaError_t error = launch(params, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(error == cudaSuccess, name,
              ": CUDA could not launch the kernel: ", cudaGetErrorString(error));
}

}  // namespace stablemask::ops::cuda
