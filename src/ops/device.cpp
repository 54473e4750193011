#include "stablemask/ops/device.h"

#ifdef STABLEMASK_HAS_CUDA
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include "src/ops/cuda/probe.h"
#endif

namespace stablemask::ops {

int64_t gpu_count() {
#ifdef STABLEMASK_HAS_CUDA
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
#else
  return 0;
#endif
}

void use_device([[maybe_unused]] c10::Device device) {
#ifdef STABLEMASK_HAS_CUDA
  if (device.is_cuda() && device.has_index()) c10::cuda::set_device(device.index());
#endif
}

std::string cuda_problem() {
#ifdef STABLEMASK_HAS_CUDA
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    return std::string("no GPU can be used (") +
           (found == cudaSuccess ? "no device" : cudaGetErrorString(found)) + ")";
  }
  const char* refusal = cuda::probe();
  if (refusal == nullptr) return "";
  return std::string("this build has no kernels for the GPU (") + refusal +
         "); configure it with -DSTABLEMASK_CUDA_ARCHITECTURES of this GPU";
#else
  return "this build has no CUDA kernels";
#endif
}

std::string device_name([[maybe_unused]] c10::Device device) {
#ifdef STABLEMASK_HAS_CUDA
  cudaDeviceProp properties{};
  const int index = device.has_index() ? device.index() : 0;
  if (device.is_cuda() && cudaGetDeviceProperties(&properties, index) == cudaSuccess) {
    return properties.name;
  }
#endif
  return "cpu";
}

bool cpu_has_bf16() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

}  // namespace stablemask::ops
