#pragma once

#include <ATen/core/Tensor.h>

namespace stablemask::ops {

struct AdamWArgs {
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  int64_t step = 1;         ///< 1 at the first update
  double grad_scale = 1.0;  ///< clip coefficient, multiplies every gradient
};

/// Decoupled weight decay Adam (Loshchilov & Hutter, arXiv 1711.05101) on flat fp32 buffers of one
/// size, in place:  m = β1·m + (1−β1)·g,  v = β2·v + (1−β2)·g²,
///   w = w − lr·(wd·w + (m/(1−β1^t)) / (sqrt(v/(1−β2^t)) + eps)).
/// `compute` (bf16, same size, or the master itself) receives the rounded copy.
void adamw_(at::Tensor& master, at::Tensor& compute, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args);

/// Σ g² of a flat fp32 buffer in fp64, 0-dim, on the buffer's device; the same bits on every run.
at::Tensor sum_of_squares(const at::Tensor& flat);

}  // namespace stablemask::ops
