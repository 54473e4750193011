#pragma once

#include <ATen/core/Tensor.h>

#include "src/ops/products.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/projections.h"
#endif

/// GEMMs with an elementwise epilogue (cuda/projections.h, shapes as there). Each returns false and
/// writes nothing if the fused kernel cannot run. Call them with Kernels::kFused only.
namespace stablemask::ops {

#ifdef STABLEMASK_HAS_CUDA
/// `columns` of the result; `narrowest`: shortest row of all matrices read and written.
inline bool has_fused(const at::Tensor& x, const at::Tensor& weight, int64_t columns,
                      int64_t narrowest) {
  return has_gemm(x, Kernels::kFused) && weight.scalar_type() == at::kBFloat16 &&
         weight.is_contiguous() && cuda::fused_projection_serves(x, columns, narrowest);
}
inline bool project_swiglu(const at::Tensor& x, const at::Tensor& up, at::Tensor& gate_up,
                           at::Tensor& hidden) {
  const bool fused = has_fused(x, up, up.size(0), hidden.size(1));
  if (fused) cuda::swiglu_projection(x, up, gate_up, hidden);
  return fused;
}
inline bool project_swiglu_backward(const at::Tensor& dy, const at::Tensor& down,
                                    const at::Tensor& gate_up, at::Tensor& dgate_up) {
  const bool fused = has_fused(dy, down, down.size(1), down.size(1));
  if (fused) cuda::swiglu_projection_backward(dy, down, gate_up, dgate_up);
  return fused;
}
inline bool project_rope(const at::Tensor& x, const at::Tensor& weight, int64_t heads, int64_t dims,
                         const at::Tensor& positions, const at::Tensor& table, at::Tensor& packed) {
  const bool whole_heads = dims == packed.size(3) && (dims == 64 || dims == 128 || dims == 256);
  const bool fused = whole_heads && has_fused(x, weight, weight.size(0), weight.size(0));
  if (fused) cuda::rope_projection(x, weight, heads, positions, table, packed);
  return fused;
}
#else
template <typename... Arguments>
bool project_swiglu(const Arguments&...) {
  return false;
}
template <typename... Arguments>
bool project_swiglu_backward(const Arguments&...) {
  return false;
}
template <typename... Arguments>
bool project_rope(const Arguments&...) {
  return false;
}
#endif

}  // namespace stablemask::ops
