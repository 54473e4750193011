#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace stablemask::ops {

struct AdamWArgs {
  double beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
};

/// What changes from update to update, fp64 [3] on the buffers' device, so that the device itself
/// can decide on it and a recorded step reads new values:
///   lr · t, 1 at the first update · grad_scale, which multiplies every gradient; negative: no
///   update.
/// Made on the CPU with grad_scale 1.
at::Tensor update_control(double lr, int64_t step, double grad_scale = 1.0);
constexpr int64_t kUpdateControls = 3;

/// Sets control's grad_scale to the clip coefficient min(1, limit / norm), limit 0: to 1; to −1
/// when the 0-dim `loss` or `norm` is not finite. Nothing is read back to the host.
void set_grad_scale_(at::Tensor& control, const at::Tensor& loss, const at::Tensor& norm,
                     double limit);

/// fp32 numbers in two pieces of 16 bits: rounded to bf16 for the products, and what is then
/// missing in their bits. Together they are as exact as fp32 and as small.
struct SplitWeights {
  at::Tensor rounded;    ///< bf16, to nearest, ties away from zero
  at::Tensor remainder;  ///< int16: the fp32 bits less those of `rounded`, as integers
};
SplitWeights split_weights(const at::Tensor& weights);
/// The bits that were split; any NaN as NaN.
at::Tensor join_weights(const SplitWeights& split);

/// Decoupled weight decay Adam (Loshchilov & Hutter, arXiv 1711.05101) on flat buffers of one size,
/// in place, g = grad_scale·grad:  m = β1·m + (1−β1)·g,  v = β2·v + (1−β2)·g²,
///   w = w − lr·(wd·w + (m/(1−β1^t)) / (sqrt(v/(1−β2^t)) + eps)).
/// m, v and grad are fp32; w is fp32 in `weights` alone, with `remainder` undefined, or split.
void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control);

/// Σ g² of a flat fp32 buffer in fp64, 0-dim, on the buffer's device; the same bits on every run.
at::Tensor sum_of_squares(const at::Tensor& flat);

}  // namespace stablemask::ops
