#include "stablemask/ops/ema.h"

#include <ATen/ATen.h>

#include "src/ops/dispatch.h"
#include "stablemask/ops/optimizer.h"

namespace stablemask::ops {
namespace {

void check_ema(const at::Tensor& average, const at::Tensor& weights, const at::Tensor& remainder,
               double decay, const at::Tensor& control, bool fp64) {
  TORCH_CHECK(average.defined() && weights.defined() && control.defined(),
              "ema_: average, weights and control must be defined");
  const bool split = remainder.defined();
  const bool is_fp64 = fp64 && !split && weights.scalar_type() == at::kDouble;
  TORCH_CHECK(split
                  ? weights.scalar_type() == at::kBFloat16 && remainder.scalar_type() == at::kShort
                  : is_fp64 || weights.scalar_type() == at::kFloat,
              "ema_: weights must be fp32, or bf16 with an int16 remainder, got ",
              weights.toString(), " and ", remainder.toString());
  TORCH_CHECK(average.scalar_type() == (is_fp64 ? at::kDouble : at::kFloat),
              "ema_: average must be ", is_fp64 ? "fp64" : "fp32", ", got ", average.toString());
  const auto fits = [&](const at::Tensor& x) {
    return x.numel() == weights.numel() && x.device() == weights.device() && x.is_contiguous();
  };
  TORCH_CHECK(weights.is_contiguous() && fits(average) && (!split || fits(remainder)),
              "ema_: average and remainder must be contiguous with the size and device of the "
              "weights ",
              weights.sizes(), ", got ", average.sizes());
  TORCH_CHECK(control.numel() == kUpdateControls && control.scalar_type() == at::kDouble &&
                  control.is_contiguous() && control.device() == weights.device(),
              "ema_: control must be fp64 [", kUpdateControls, "] on the buffers' device, got ",
              control.toString(), " ", control.sizes());
  TORCH_CHECK(decay >= 0 && decay < 1, "ema_: need decay from 0 to below 1, got ", decay);
}

}  // namespace

void ema_(at::Tensor& average, const at::Tensor& weights, const at::Tensor& remainder, double decay,
          const at::Tensor& control, Kernels kernels) {
  check_ema(average, weights, remainder, decay, control, /*fp64=*/false);
  if (kernels == Kernels::kReference) {
    return reference::ema_(average, weights, remainder, decay, control);
  }
  STABLEMASK_KERNEL(weights, ema_(average, weights, remainder, decay, control));
}

void reference::ema_(at::Tensor& average, const at::Tensor& weights, const at::Tensor& remainder,
                     double decay, const at::Tensor& control) {
  check_ema(average, weights, remainder, decay, control, /*fp64=*/true);
  const at::Tensor t = control[1];
  const at::Tensor d = at::clamp_max((t + 1.0) / (t + 10.0), decay);
  const at::Tensor w = remainder.defined() ? join_weights({weights, remainder}) : weights;
  const at::Tensor next = average + (1.0 - d).to(average.scalar_type()) * (w - average);
  average.copy_(at::where(control[2] < 0.0, average, next));
}

}  // namespace stablemask::ops
