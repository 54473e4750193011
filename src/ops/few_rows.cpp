#include "src/ops/few_rows.h"

#include <ATen/ATen.h>

#include <vector>

#include "src/ops/contracts.h"
#include "stablemask/ops/functional.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/projections.h"
#endif

namespace stablemask::ops {

#ifdef STABLEMASK_HAS_CUDA
at::Tensor few_rows_linear(const at::Tensor& x, const at::Tensor& weight, Kernels kernels,
                           const FewRows& options) {
  if (kernels == Kernels::kReference || !x.is_cuda() || x.scalar_type() != at::kBFloat16) return {};
  if (at::GradMode::is_enabled()) {
    for (const at::Tensor& operand : {x, weight, options.residual, options.norm}) {
      if (operand.defined() && operand.requires_grad()) return {};
    }
  }
  const at::Tensor in = x.reshape({-1, x.size(-1)}).contiguous();
  if (!cuda::thin_projection_serves(in, weight, options.norm)) return {};
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0) / (options.gated ? 2 : 1);
  at::Tensor out = at::empty(shape, x.options());
  const at::Tensor residual =
      options.residual.defined() ? options.residual.contiguous() : options.residual;
  cuda::thin_projection(in, weight, {residual, options.norm, options.eps, options.gated}, out);
  return out;
}
#else
at::Tensor few_rows_linear(const at::Tensor&, const at::Tensor&, Kernels, const FewRows&) {
  return {};
}
#endif

at::Tensor norm_linear(const at::Tensor& x, const at::Tensor& norm, double eps, const Weight& w,
                       Kernels kernels) {
  const at::Tensor& weight = w.tensor();
  check_norm("norm_linear", x, eps, {norm});
  check_projection("norm_linear", x, weight);
  const at::Tensor out = few_rows_linear(x, weight, kernels, {{}, norm, eps, false});
  return out.defined() ? out : ops::linear(rms_norm(x, norm, eps, kernels), w, kernels);
}

at::Tensor norm_swiglu_feed_forward(const at::Tensor& x, const at::Tensor& norm, double eps,
                                    const Weight& up, const Weight& down, Kernels kernels) {
  check_norm("norm_swiglu_feed_forward", x, eps, {norm});
  check_feed_forward("norm_swiglu_feed_forward", x, up.tensor(), down.tensor(), x);
  const at::Tensor hidden =
      few_rows_linear(x, up.tensor(), kernels, {{}, norm, eps, /*gated=*/true});
  if (hidden.defined()) return linear_add(hidden, down, x, kernels);
  const auto [residual, normed] = rms_norm_branch(x, norm, eps, kernels);
  return swiglu_feed_forward(normed, up, down, residual, kernels);
}

}  // namespace stablemask::ops
