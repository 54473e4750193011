#pragma once

#include <ATen/core/Tensor.h>

#include "stablemask/ops/optimizer.h"

/// The seam between the differentiable ops (functional*.cpp, attention.cpp, optimizer.cpp) and
/// their kernels: plain functions on tensors, no autograd. `cpu` serves fp32, `cuda` bf16 and fp32
/// activations; `cuda` exists only in CUDA builds (STABLEMASK_HAS_CUDA).
namespace stablemask::ops::cpu {
#include "src/ops/kernel_list.inc"
}  // namespace stablemask::ops::cpu

#ifdef STABLEMASK_HAS_CUDA
namespace stablemask::ops::cuda {
#include "src/ops/kernel_list.inc"
}  // namespace stablemask::ops::cuda
#endif
