#pragma once

#include <ATen/core/Tensor.h>

#include "stablemask/ops/attention.h"

/// `attention` as a forward and a backward that record no gradients, for a framework that records
/// them itself.
namespace stablemask::ops {

struct AttentionForward {
  at::Tensor out;  ///< [B,T,H,D], as `attention` returns it
  at::Tensor lse;  ///< fp32 (fp64 for fp64) [B,H,T]: what the backward needs of the softmax. Its
                   ///< meaning depends on the kernel, so only attention_backward can read it
};

/// Arguments and errors of `attention`.
AttentionForward attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const AttentionOptions& options);

struct AttentionGradients {
  at::Tensor q, k, v;        ///< of the shapes of the arguments; strides depend on the kernel
  at::Tensor gamma, p_base;  ///< [H]; undefined unless asked for
};

/// Gradients for dout [B,T,H,D] from the inputs and the result of attention_forward; log_mass of
/// the options must be undefined. `mask_gradients`: also those of options.pseudo. Where no flash
/// kernel can run, the formula is computed again and differentiated.
AttentionGradients attention_backward(const at::Tensor& dout, const at::Tensor& q,
                                      const at::Tensor& k, const at::Tensor& v,
                                      const AttentionForward& forward,
                                      const AttentionOptions& options, bool mask_gradients);

}  // namespace stablemask::ops
