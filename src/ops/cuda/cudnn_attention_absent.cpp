#include <c10/util/Exception.h>

#include "src/ops/cuda/cudnn_attention.h"

/// Replaces cudnn_attention.cpp in builds without the headers of cuDNN's graph API.
namespace stablemask::ops::cuda {
namespace {

constexpr const char* kObstacle = "this build has no headers of cuDNN's graph API";

}  // namespace

std::string cudnn_attention_obstacle(const CudnnAttention&, const at::Tensor&, bool) {
  return kObstacle;
}

void cudnn_attention_forward(const CudnnAttention&, const at::Tensor&, at::Tensor&, at::Tensor&) {
  TORCH_CHECK(false, "cuDNN attention: ", kObstacle);
}

void cudnn_attention_backward(const CudnnAttention&, const at::Tensor&, const at::Tensor&,
                              const at::Tensor&, const at::Tensor&, at::Tensor&) {
  TORCH_CHECK(false, "cuDNN attention: ", kObstacle);
}

}  // namespace stablemask::ops::cuda
