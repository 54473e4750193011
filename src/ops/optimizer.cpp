#include "stablemask/ops/optimizer.h"

#include <ATen/ATen.h>

#include "src/ops/dispatch.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops {

at::Tensor update_control(double lr, int64_t step, double grad_scale) {
  return at::tensor({lr, static_cast<double>(step), grad_scale}, at::kDouble);
}

void set_grad_scale_(at::Tensor& control, const at::Tensor& loss, const at::Tensor& norm,
                     double limit) {
  const at::Tensor wide = norm.to(at::kDouble);
  const at::Tensor scale = limit > 0 ? at::clamp_max(limit / wide, 1.0) : at::ones_like(wide);
  const at::Tensor finite = at::logical_and(at::isfinite(norm), at::isfinite(loss));
  control.select(0, 2).copy_(at::where(finite, scale, -1.0));
}

namespace {

constexpr int32_t kHalf = 0x8000;  // half a bf16 unit in the last place, in fp32 bits
constexpr int32_t kNan = 0x7fc00000;

}  // namespace

SplitWeights split_weights(const at::Tensor& weights) {
  const at::Tensor given = weights.contiguous();
  // Rounding the bits of a NaN could give those of a number or infinity.
  const at::Tensor bits = at::where(given.isnan(), kNan, given.view(at::kInt)).to(at::kInt);
  const at::Tensor upper = at::bitwise_right_shift(bits + kHalf, 16);
  const at::Tensor lower = bits - at::bitwise_left_shift(upper, 16);
  return {upper.to(at::kShort).view(at::kBFloat16), lower.to(at::kShort)};
}

at::Tensor join_weights(const SplitWeights& split) {
  const at::Tensor upper = split.rounded.contiguous().view(at::kShort).to(at::kInt);
  return (at::bitwise_left_shift(upper, 16) + split.remainder).contiguous().view(at::kFloat);
}

void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control,
            Kernels kernels) {
  const bool split = remainder.defined();
  const auto fits = [&](const at::Tensor& x) {
    return x.numel() == weights.numel() && x.device() == weights.device();
  };
  TORCH_CHECK(fits(m) && fits(v) && fits(grad) && (!split || fits(remainder)),
              "adamw_: every buffer must have the size and device of the weights");
  TORCH_CHECK(split
                  ? weights.scalar_type() == at::kBFloat16 && remainder.scalar_type() == at::kShort
                  : weights.scalar_type() == at::kFloat,
              "adamw_: weights must be fp32, or bf16 with an int16 remainder, got ",
              weights.toString(), " and ", remainder.toString());
  TORCH_CHECK(control.numel() == kUpdateControls && control.scalar_type() == at::kDouble &&
                  control.is_contiguous() && control.device() == weights.device(),
              "adamw_: control must be fp64 [", kUpdateControls, "] on the buffers' device, got ",
              control.toString(), " ", control.sizes());
  if (kernels == Kernels::kReference) {
    return reference::adamw_(weights, remainder, m, v, grad, args, control);
  }
  STABLEMASK_KERNEL(weights, adamw_(weights, remainder, m, v, grad, args, control));
}

at::Tensor sum_of_squares(const at::Tensor& flat, Kernels kernels) {
  if (kernels == Kernels::kReference) return flat.to(at::kDouble).square().sum();
  return STABLEMASK_KERNEL(flat, sum_of_squares(flat));
}

}  // namespace stablemask::ops
