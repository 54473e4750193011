#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stablemask/ops/kernels.h"

namespace stablemask::ops {

struct AdamWArgs {
  double beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
};

/// The values that change from update to update, fp64 [3] in device memory, where a recorded step
/// reads them and the device itself can decide whether to update:
///   [0] lr  [1] t, 1 at the first update  [2] grad_scale, multiplies every gradient; negative:
///   skip the update.
/// Returned on the CPU.
at::Tensor update_control(double lr, int64_t step, double grad_scale = 1.0);
constexpr int64_t kUpdateControls = 3;

/// Sets control's grad_scale to the clip coefficient min(1, limit / norm), limit 0: to 1; to −1
/// when the 0-dim `loss` or `norm` is not finite. Nothing is read back to the host.
void set_grad_scale_(at::Tensor& control, const at::Tensor& loss, const at::Tensor& norm,
                     double limit);

/// Lossless split of fp32 numbers: bf16 (round to nearest, ties away from zero) for the GEMMs, and
/// the int16 difference of the bit patterns. Together 4 bytes, as fp32.
struct SplitWeights {
  at::Tensor rounded;    ///< bf16
  at::Tensor remainder;  ///< int16: fp32 bits minus (bits of `rounded` << 16), as integers
};
SplitWeights split_weights(const at::Tensor& weights);
/// Inverse of split_weights, bit for bit; every NaN becomes the quiet NaN.
at::Tensor join_weights(const SplitWeights& split);

/// Decoupled weight decay Adam (Loshchilov & Hutter, arXiv 1711.05101) on flat buffers of one size,
/// in place, g = grad_scale·grad:  m = β1·m + (1−β1)·g,  v = β2·v + (1−β2)·g²,
///   w = w − lr·(wd·w + (m/(1−β1^t)) / (sqrt(v/(1−β2^t)) + eps)).
/// m, v and grad are fp32; w is fp32 in `weights` alone, with `remainder` undefined, or split.
void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control,
            Kernels kernels = Kernels::kFused);

/// Σ g² of a flat fp32 buffer in fp64, 0-dim, on the buffer's device; the same bits on every run.
at::Tensor sum_of_squares(const at::Tensor& flat, Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops
