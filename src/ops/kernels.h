#pragma once

#include <ATen/core/Tensor.h>

#include "stablemask/ops/decode.h"
#include "stablemask/ops/optimizer.h"

/// Kernels called by the differentiable ops (functional*.cpp, attention.cpp, optimizer.cpp):
/// functions on tensors without autograd. `cpu` takes fp32 activations, `cuda` bf16 and fp32;
/// `cuda` exists only in CUDA builds (STABLEMASK_HAS_CUDA).
namespace stablemask::ops::cpu {
#include "src/ops/kernel_list.inc"
}  // namespace stablemask::ops::cpu

#ifdef STABLEMASK_HAS_CUDA
namespace stablemask::ops::cuda {
#include "src/ops/kernel_list.inc"
}  // namespace stablemask::ops::cuda
#endif
