#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stablemask/ops/kernels.h"

namespace stablemask::ops {

struct AdamWArgs {
  double beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  /// Of bf16 moments: the seed of their rounding, and the index of the buffers' first element among
  /// all elements that the update consists of.
  int64_t seed = 0, first = 0;
};

/// The arguments of an update that change from step to step, as an fp64 tensor [3]:
///   [0] lr
///   [1] t, 1 at the first update
///   [2] grad_scale, multiplies every gradient; negative: skip the update.
/// In device memory a CUDA graph reads the current values on replay, and a kernel can set
/// grad_scale without host synchronisation. This function returns the tensor on the CPU.
at::Tensor update_control(double lr, int64_t step, double grad_scale = 1.0);
constexpr int64_t kUpdateControls = 3;

/// Sets control's grad_scale to the clip coefficient min(1, limit / norm), or to 1 for limit 0, or
/// to −1 if the 0-dim `loss` or `norm` is not finite. No host synchronisation.
void set_grad_scale_(at::Tensor& control, const at::Tensor& loss, const at::Tensor& norm,
                     double limit);

/// Lossless fp32 = bf16 (rounded half away from zero), which the GEMMs read, + int16 low-order
/// bits. 4 bytes per weight, as fp32.
struct SplitWeights {
  at::Tensor rounded;    ///< bf16
  at::Tensor remainder;  ///< int16: fp32 bits minus (bits of `rounded` << 16), as integers
};
SplitWeights split_weights(const at::Tensor& weights);
/// Inverse of split_weights, bit for bit; every NaN becomes the quiet NaN.
at::Tensor join_weights(const SplitWeights& split);

/// AdamW (decoupled weight decay, Loshchilov & Hutter, arXiv 1711.05101) in place on flat buffers
/// of equal size, with g = grad_scale·grad:  m = β1·m + (1−β1)·g,  v = β2·v + (1−β2)·g²,
///   w = w − lr·(wd·w + (m/(1−β1^t)) / (sqrt(v/(1−β2^t)) + eps)).
/// grad is fp32; m and v are both fp32 or both bf16. w is either fp32 in `weights` with `remainder`
/// undefined, or split (SplitWeights). lr, t and grad_scale: update_control, on the buffers'
/// device. Throws c10::Error if sizes, dtypes or devices differ from this.
///
/// bf16 moments: w is updated with the fp32 m and v of this step, which are then rounded up or down
/// at random so that the mean is exact (stochastic rounding). A finite one stays finite, v stays at
/// least 0. The random bits are a function of args.seed, t, args.first + the element's index, and
/// whether it is m or v: updates of parts, of any size and on any device, round as one of the whole
/// does (reference::rounded_moment).
void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control,
            Kernels kernels = Kernels::kFused);

/// Σ g² of a flat fp32 buffer: fp64, 0-dim, on the buffer's device; bitwise reproducible.
at::Tensor sum_of_squares(const at::Tensor& flat, Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops
