#include "stablemask/ops/device.h"

#ifdef STABLEMASK_HAS_CUDA
#include <cuda_runtime_api.h>

#include "src/ops/cuda/probe.h"
#endif

namespace stablemask::ops {

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

}  // namespace stablemask::ops
