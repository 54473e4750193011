#include "src/ops/fp8_plain.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <vector>

#include "src/ops/dispatch.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops::fp8::plain {
namespace {

at::Tensor matrix_of(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

/// The largest power of two s, within 2^±60, with s · maxima ≤ limits, from the numbers' exponents.
at::Tensor scales_for(const at::Tensor& maxima, const at::Tensor& limits) {
  constexpr int64_t kExponents = 60, kBias = 127, kMantissaBits = 23;
  const auto [maximum_part, maximum_exponent] = at::frexp(maxima);
  const auto [limit_part, limit_exponent] = at::frexp(limits);
  const at::Tensor exponent = limit_exponent - maximum_exponent -
                              (maximum_part > limit_part).to(maximum_exponent.scalar_type());
  const at::Tensor biased = at::clamp(exponent, -kExponents, kExponents) + kBias;
  return at::bitwise_left_shift(biased.to(at::kInt), kMantissaBits).view(at::kFloat);
}

/// Which maxima say something about the next step.
at::Tensor telling(const at::Tensor& maxima) {
  return at::logical_and(at::isfinite(maxima), maxima > 0);
}

at::Tensor swiglu_gradient(const at::Tensor& dout, const at::Tensor& gate_up) {
  const at::ScalarType type = gate_up.scalar_type(),
                       wide = type == at::kDouble ? at::kDouble : at::kFloat;
  const std::vector<at::Tensor> halves = gate_up.to(wide).chunk(2, -1);
  const at::Tensor &gate = halves[0], &up = halves[1], d = dout.to(wide), s = at::sigmoid(gate);
  return at::cat({d * up * s * (1 + gate * (1 - s)), d * gate * s}, -1).to(type);
}

/// `packed` rotated in place by the fused kernel, or a rotated copy where there is none.
at::Tensor rotated(at::Tensor packed, int64_t heads, const RopeInputs& rope, bool inverse,
                   Kernels kernels) {
  const auto& [dims, positions, table] = rope;
  if (has_fused_kernels(packed, kernels)) {
    STABLEMASK_KERNEL(
        packed, rope_(packed, heads, dims, positions.contiguous(), table.contiguous(), inverse));
    return packed;
  }
  const std::vector<at::Tensor> halves = table.chunk(2, -1);
  const at::Tensor turned = inverse ? at::cat({halves[0], -halves[1]}, -1) : table;
  return ops::reference::rope(packed, heads, dims, positions, turned).contiguous();
}

}  // namespace

void update_scales_(Scaling& scaling) {
  const at::Tensor known = telling(scaling.maxima);
  const at::Tensor clipped =
      at::logical_and(known, scaling.maxima * scaling.scales > scaling.limits);
  scaling.saturations.add_(clipped.to(at::kLong));
  const int64_t kept = scaling.history.size(1) - 1;
  const at::Tensor entered =
      at::cat({scaling.maxima.unsqueeze(1), scaling.history.narrow(1, 0, kept)}, 1);
  scaling.history.copy_(at::where(known.unsqueeze(1), entered, scaling.history));
  const at::Tensor scales =
      scales_for(at::amax(scaling.history, 1) * scaling.margin, scaling.limits);
  scaling.scales.copy_(at::where(known, scales, scaling.scales));
  scaling.inverses.copy_(at::reciprocal(scaling.scales));
  scaling.maxima.zero_();
}

void fit_scale_(const Slot& slot) {
  const at::Tensor scale = scales_for(slot.maximum * slot.margin, slot.limit);
  slot.scale.copy_(at::where(telling(slot.maximum), scale, slot.scale));
  slot.inverse.copy_(at::reciprocal(slot.scale));
}

void quantize(const at::Tensor& x, const Slot& slot, Matrix& out) {
  if (x.numel() == 0) return;
  const at::Tensor wide = matrix_of(x).to(at::kFloat);
  const double limit = largest(slot.format);
  const at::Tensor finite = at::clamp(wide * slot.scale, -limit, limit);
  const at::Tensor values = at::where(at::isfinite(wide), finite, NAN).to(type_of(slot.format));
  slot.maximum.copy_(at::maximum(slot.maximum, wide.abs().max()));
  if (out.values.defined()) out.values.copy_(values);
  if (out.twin.defined()) out.twin.copy_(values.t());
}

void quantize_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                       double eps, const Slot& slot, at::Tensor& sum, at::Tensor& rstd, Matrix& out,
                       Kernels kernels) {
  if (x.numel() == 0) return;
  at::Tensor y = at::empty_like(x);
  if (has_fused_norm(x, weight, kernels)) {
    STABLEMASK_KERNEL(x, rms_norm_forward(x, residual, weight, eps, sum, y, rstd));
  } else {
    if (residual.defined()) sum.copy_(residual + x);
    const at::Tensor& normed = residual.defined() ? sum : x;
    y = ops::reference::rms_norm(normed, weight, eps).contiguous();
    const at::Tensor squares = matrix_of(normed).to(at::kDouble).square().mean(1);
    rstd.copy_(at::rsqrt(squares + eps).view(rstd.sizes()));
  }
  plain::quantize(y, slot, out);
}

void quantize_swiglu(const at::Tensor& gate_up, const Slot& slot, Matrix& out, Kernels kernels) {
  const at::NoGradGuard no_grad;
  plain::quantize(ops::swiglu(gate_up, kernels), slot, out);
}

void quantize_swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up, const Slot& slot,
                              Matrix& out, Kernels kernels) {
  if (!has_fused_kernels(gate_up, kernels)) {
    return plain::quantize(swiglu_gradient(dout, gate_up), slot, out);
  }
  at::Tensor gradient = at::empty_like(gate_up);
  STABLEMASK_KERNEL(gate_up, swiglu_backward(dout, gate_up, gradient));
  plain::quantize(gradient, slot, out);
}

void quantize_rope_backward(const at::Tensor& dpacked, int64_t heads_rotated,
                            const RopeInputs& rope, const Slot& slot, Matrix& out,
                            Kernels kernels) {
  const at::Tensor turned =
      rotated(dpacked.clone(), heads_rotated, rope, /*inverse=*/true, kernels);
  const int64_t columns = dpacked.size(2) * dpacked.size(3);
  plain::quantize(turned.view({-1, columns}), slot, out);
}

void rotate_(at::Tensor& packed, int64_t heads_rotated, const RopeInputs& rope, Kernels kernels) {
  const at::Tensor turned = rotated(packed, heads_rotated, rope, /*inverse=*/false, kernels);
  if (!turned.is_same(packed)) packed.copy_(turned);
}

void product(at::Tensor& out, const Operand& a, const Operand& b, double beta,
             const at::Tensor& addend) {
  if (out.numel() == 0) return;
  at::Tensor sums = at::mm(a.values.to(at::kFloat), b.values.to(at::kFloat).t());
  sums.mul_(a.inverse * b.inverse);
  if (beta != 0.0) sums.add_(addend.defined() ? addend : out);
  out.copy_(sums);
}

}  // namespace stablemask::ops::fp8::plain
