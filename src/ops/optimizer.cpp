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

void adamw_(at::Tensor& master, at::Tensor& compute, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control) {
  for (const at::Tensor& x : {compute, m, v, grad}) {
    TORCH_CHECK(x.numel() == master.numel() && x.device() == master.device(),
                "adamw_: every buffer must have the size and device of master");
  }
  TORCH_CHECK(control.numel() == kUpdateControls && control.scalar_type() == at::kDouble &&
                  control.is_contiguous() && control.device() == master.device(),
              "adamw_: control must be fp64 [", kUpdateControls, "] on the buffers' device, got ",
              control.toString(), " ", control.sizes());
  if (reference_only()) return reference::adamw_(master, compute, m, v, grad, args, control);
  STABLEMASK_KERNEL(master, adamw_(master, compute, m, v, grad, args, control));
}

at::Tensor sum_of_squares(const at::Tensor& flat) {
  if (reference_only()) return flat.to(at::kDouble).square().sum();
  return STABLEMASK_KERNEL(flat, sum_of_squares(flat));
}

}  // namespace stablemask::ops
