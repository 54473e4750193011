#pragma once

#include <ATen/core/Tensor.h>

#include "src/ops/products.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/projections.h"
#endif

/// GEMMs with an elementwise epilogue (cuda/projections.h, shapes as there). Each returns false and
/// writes nothing if the fused kernel cannot run. Not for Kernels::kReference.
namespace stablemask::ops {

#ifdef STABLEMASK_HAS_CUDA
/// `columns` of the result; `narrowest`: shortest row of all matrices read and written.
inline bool has_fused(const at::Tensor& x, const at::Tensor& weight, int64_t columns,
                      int64_t narrowest, const SecondFactors& second) {
  return has_gemm(x, Kernels::kFused) && weight.scalar_type() == at::kBFloat16 &&
         weight.is_contiguous() && cuda::fused_projection_serves(x, columns, narrowest) &&
         cuda::second_factors_serve(second);
}
inline bool project_swiglu(const at::Tensor& x, const at::Tensor& up, at::Tensor& gate_up,
                           at::Tensor& hidden, const SecondFactors& second = {}) {
  const bool fused = has_fused(x, up, up.size(0), hidden.size(1), second);
  if (fused) cuda::swiglu_projection(x, up, gate_up, hidden, second);
  return fused;
}
inline bool project_swiglu_backward(const at::Tensor& dy, const at::Tensor& down,
                                    const at::Tensor& gate_up, at::Tensor& dgate_up,
                                    const SecondFactors& second = {},
                                    const at::Tensor& hidden = {}) {
  const bool fused = has_fused(dy, down, down.size(1), down.size(1), second);
  if (fused) cuda::swiglu_projection_backward(dy, down, gate_up, dgate_up, second, hidden);
  return fused;
}
inline bool project_rope(const at::Tensor& x, const at::Tensor& weight, int64_t heads, int64_t dims,
                         const at::Tensor& positions, const at::Tensor& table, at::Tensor& packed,
                         const SecondFactors& second = {}) {
  const bool whole_heads = dims == packed.size(3) && (dims == 64 || dims == 128 || dims == 256);
  const bool fused = whole_heads && has_fused(x, weight, weight.size(0), weight.size(0), second);
  if (fused) cuda::rope_projection(x, weight, heads, positions, table, packed, second);
  return fused;
}
inline bool project_sum(const at::Tensor& x, const at::Tensor& weight, const SecondFactors& second,
                        const at::Tensor& addend, bool plain, at::Tensor& out) {
  const bool fused = has_fused(x, weight, out.size(1), out.size(1), second) &&
                     cuda::second_factors_serve({addend, addend});
  if (fused) cuda::sum_projection(x, weight, second, addend, plain, out);
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
template <typename... Arguments>
bool project_sum(const Arguments&...) {
  return false;
}
#endif

}  // namespace stablemask::ops
