#pragma once

#include <ATen/core/Tensor.h>

#include "stablemask/ops/optimizer.h"

/// The seam between the differentiable ops (functional.cpp, attention.cpp, optimizer.cpp) and their
/// kernels: plain functions on tensors, no autograd. `cpu` serves fp32 (and fp64 where a caller
/// needs it); `cuda` serves bf16 and fp32 activations and exists only in CUDA builds
/// (STABLEMASK_HAS_CUDA). Activations are contiguous unless a comment says otherwise; N rows =
/// product of leading dimensions. A weight gradient `dw` is fp32 (fp64 for fp64) and is accumulated
/// into, never overwritten.

namespace stablemask::ops {

#define STABLEMASK_DECLARE_KERNELS                                                                      \
  /* y [N,C] = rms_norm(x); rstd fp32 [N]. With `residual` defined: x := residual + x first, the        \
   */                                                                                                   \
  /* sum is written to `sum` (x's dtype), which backward then takes as its x. */                        \
  void rms_norm_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,      \
                        double eps, at::Tensor& sum, at::Tensor& y, at::Tensor& rstd);                  \
  /* dx = gradient through the norm (+ dsum where defined: the gradient of `sum` itself). */            \
  void rms_norm_backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& x,             \
                         const at::Tensor& weight, const at::Tensor& rstd, at::Tensor& dx,              \
                         at::Tensor& dw);                                                               \
  /* gate_up [N,2F] → out [N,F]; backward writes dgate_up [N,2F]. */                                  \
  void swiglu_forward(const at::Tensor& gate_up, at::Tensor& out);                                      \
  void swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up, at::Tensor& dgate_up);        \
  /* Rotates heads 0 … heads−1 of packed [B,T,Hp,D] in place; inverse: by −angle (the backward).  \
   */                                                                                                   \
  /* positions int64 [T] or [B,T]; table fp32 [P, dims]. */                                             \
  void rope_(at::Tensor& packed, int64_t heads, int64_t dims, const at::Tensor& positions,              \
             const at::Tensor& table, bool inverse);                                                    \
  /* logits [N,V] → losses fp32 [N] = nll + z_loss·lse² (0 where the target is −100). With `grad` \
   */                                                                                                   \
  /* the logits are overwritten by scale · d(loss)/d(logits). */                                       \
  void cross_entropy_(at::Tensor& logits, const at::Tensor& targets, double scale, double z_loss,       \
                      bool grad, at::Tensor& losses);                                                   \
  /* StableMask correction, in place: out [B,T,H,D] (any strides, last dim contiguous), lse fp32        \
   */                                                                                                   \
  /* [B,H,T], log_mass fp32 [H,T] or [B,H,T] (−inf allowed). lse := logaddexp(lse, log_mass), */      \
  /* out *= exp(lse_before − lse_after). A row with no real mass (lse = −inf) gets out = 0. */      \
  void stable_mask_correct_(at::Tensor& out, at::Tensor& lse, const at::Tensor& log_mass);              \
  /* dw[ids[n], :] += dy[n, :], deterministic. */                                                       \
  void embedding_backward(const at::Tensor& dy, const at::Tensor& ids, at::Tensor& dw);                 \
  void adamw_(at::Tensor& master, at::Tensor& compute, at::Tensor& m, at::Tensor& v,                    \
              const at::Tensor& grad, const AdamWArgs& args);                                           \
  at::Tensor sum_of_squares(const at::Tensor& flat);

namespace cpu {
STABLEMASK_DECLARE_KERNELS
}

#ifdef STABLEMASK_HAS_CUDA
namespace cuda {
STABLEMASK_DECLARE_KERNELS
}
#endif

#undef STABLEMASK_DECLARE_KERNELS

}  // namespace stablemask::ops
