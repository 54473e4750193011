#include <cuda_runtime.h>

#include "src/ops/cuda/probe.h"

namespace stablemask::ops::cuda {
namespace {

__global__ void empty_kernel() {}

}  // namespace

const char* probe() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, empty_kernel);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // clear the error, so that the next unrelated CUDA check does not report it
  return cudaGetErrorString(error);
}

}  // namespace stablemask::ops::cuda
