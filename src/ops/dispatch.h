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

/// Whether the fused RMSNorm takes x and its weight.
inline bool has_fused_norm(const at::Tensor& x, const at::Tensor& weight, Kernels kernels) {
  if (x.is_cuda() && x.size(-1) > 8192) return false;
  const bool fp32_weight = x.is_cuda() && weight.scalar_type() == at::kFloat;
  return has_fused_kernels(x, kernels) &&
         (weight.scalar_type() == x.scalar_type() || fp32_weight) && weight.is_contiguous();
}

}  // namespace stablemask::ops
