#pragma once

#include "src/ops/cuda/common.cuh"

/// SwiGLU on single numbers, for the kernels that write it in different formats.
namespace stablemask::ops::cuda {

/// silu(gate) · up with the accuracy that T needs.
template <typename T>
__device__ __forceinline__ float swiglu_of(float gate, float up) {
  return gate * sigmoid_as<T>(gate) * up;
}

struct SwigluGradient {
  float gate, up;
};

template <typename T>
__device__ __forceinline__ SwigluGradient swiglu_gradient_of(float dout, float gate, float up) {
  const float s = sigmoid_as<T>(gate);
  return {dout * up * s * (1.0f + gate * (1.0f - s)), dout * gate * s};
}

}  // namespace stablemask::ops::cuda
