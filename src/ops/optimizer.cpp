#include "stablemask/ops/optimizer.h"

#include <ATen/ATen.h>

#include <cmath>

#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops {

at::Tensor update_control(double lr, int64_t step, double grad_scale) {
  TORCH_CHECK(std::isfinite(lr) && lr >= 0 && step >= 1,
              "update_control: need lr of at least 0 and step of at least 1, got ", lr, " and ",
              step);
  return at::tensor({lr, static_cast<double>(step), grad_scale}, at::kDouble);
}

void set_grad_scale_(at::Tensor& control, const at::Tensor& loss, const at::Tensor& norm,
                     double limit) {
  TORCH_CHECK(control.defined() && control.numel() == kUpdateControls &&
                  control.scalar_type() == at::kDouble,
              "set_grad_scale_: control must be fp64 [", kUpdateControls, "], got ",
              control.toString(), " ", control.sizes());
  check_float("set_grad_scale_", "loss", loss);
  check_float("set_grad_scale_", "norm", norm);
  check_device("set_grad_scale_", "control", control, "loss", loss);
  check_device("set_grad_scale_", "control", control, "norm", norm);
  TORCH_CHECK(loss.dim() == 0 && norm.dim() == 0, "set_grad_scale_: loss ", loss.sizes(),
              " and norm ", norm.sizes(), " must be 0-dim");
  TORCH_CHECK(limit >= 0, "set_grad_scale_: limit must be at least 0, got ", limit);
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
  TORCH_CHECK(weights.defined() && weights.scalar_type() == at::kFloat,
              "split_weights: weights must be fp32, got ", weights.toString());
  const at::Tensor given = weights.contiguous();
  // Rounding the bits of a NaN could give those of a number or infinity.
  const at::Tensor bits = at::where(given.isnan(), kNan, given.view(at::kInt)).to(at::kInt);
  const at::Tensor upper = at::bitwise_right_shift(bits + kHalf, 16);
  const at::Tensor lower = bits - at::bitwise_left_shift(upper, 16);
  return {upper.to(at::kShort).view(at::kBFloat16), lower.to(at::kShort)};
}

at::Tensor join_weights(const SplitWeights& split) {
  const at::Tensor &rounded = split.rounded, &remainder = split.remainder;
  TORCH_CHECK(rounded.defined() && remainder.defined() && rounded.scalar_type() == at::kBFloat16 &&
                  remainder.scalar_type() == at::kShort,
              "join_weights: need bf16 and int16, got ", rounded.toString(), " and ",
              remainder.toString());
  check_device("join_weights", "rounded", rounded, "remainder", remainder);
  TORCH_CHECK(rounded.sizes() == remainder.sizes(), "join_weights: rounded ", rounded.sizes(),
              " and remainder ", remainder.sizes(), " differ");
  const at::Tensor upper = split.rounded.contiguous().view(at::kShort).to(at::kInt);
  return (at::bitwise_left_shift(upper, 16) + split.remainder).contiguous().view(at::kFloat);
}

void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control,
            Kernels kernels) {
  check_adamw(weights, remainder, m, v, grad, args, control);
  if (kernels == Kernels::kReference) {
    return reference::adamw_(weights, remainder, m, v, grad, args, control);
  }
  STABLEMASK_KERNEL(weights, adamw_(weights, remainder, m, v, grad, args, control));
}

at::Tensor sum_of_squares(const at::Tensor& flat, Kernels kernels) {
  TORCH_CHECK(flat.defined() && flat.scalar_type() == at::kFloat && flat.is_contiguous(),
              "sum_of_squares: flat must be fp32 and contiguous, got ", flat.toString());
  if (kernels == Kernels::kReference) return flat.to(at::kDouble).square().sum();
  return STABLEMASK_KERNEL(flat, sum_of_squares(flat));
}

}  // namespace stablemask::ops
