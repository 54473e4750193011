#pragma once

#include "src/ops/kernels.h"
#include "stablemask/ops/kernels.h"

/// STABLEMASK_KERNEL(tensor, f(args…)) calls cuda::f for a CUDA tensor, cpu::f otherwise.
#ifdef STABLEMASK_HAS_CUDA
#define STABLEMASK_KERNEL(tensor, call) ((tensor).is_cuda() ? cuda::call : cpu::call)
#else
#define STABLEMASK_KERNEL(tensor, call) (cpu::call)
#endif

namespace stablemask::ops {

/// Whether fused kernels exist for the device and dtype of the activations `x`.
inline bool has_fused_kernels(const at::Tensor& x, Kernels kernels) {
  if (kernels == Kernels::kReference) return false;
#ifdef STABLEMASK_HAS_CUDA
  if (x.is_cuda()) return x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat;
#endif
  return x.is_cpu() && x.scalar_type() == at::kFloat;
}

}  // namespace stablemask::ops
