#include "src/ops/few_rows.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <vector>

#include "src/ops/contracts.h"
#include "src/ops/cpu_few_rows.h"
#include "src/ops/kernels.h"
#include "stablemask/ops/functional.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/gemm.h"
#include "src/ops/cuda/projections.h"
#endif

namespace stablemask::ops {

namespace {

bool needs_gradient(const at::Tensor& x, const at::Tensor& weight, const FewRows& options) {
  if (!at::GradMode::is_enabled()) return false;
  for (const at::Tensor& operand : {x, weight, options.residual, options.norm}) {
    if (operand.defined() && operand.requires_grad()) return true;
  }
  return false;
}

/// `in`: x as rows; the result has `shape`. A norm is a pass of its own here.
at::Tensor on_cpu(const at::Tensor& in, const at::Tensor& weight, const FewRows& options,
                  const std::vector<int64_t>& shape) {
  if (options.norm.defined() || !cpu::few_rows_serves(in, weight)) return {};
  at::Tensor product = at::empty({in.size(0), weight.size(0)}, in.options());
  at::Tensor residual = options.residual;
  if (residual.defined()) residual = residual.reshape(product.sizes()).contiguous();
  cpu::few_rows_product(in, weight, residual, product);
  if (!options.gated) return product.view(shape);
  at::Tensor hidden = at::empty(shape, in.options());
  cpu::swiglu_forward(product, hidden);
  return hidden;
}

#ifdef STABLEMASK_HAS_CUDA
/// Whether the kernel for few rows is faster than cuBLASLt, measured on an H100: always up to 8
/// rows; up to 32 where the weight is small, so that launches and latencies take the time.
bool is_faster(int64_t rows, const at::Tensor& weight) {
  constexpr int64_t kSmallWeight = int64_t{8} << 20;
  if (rows <= 8) return true;
  return weight.numel() <= kSmallWeight && weight.size(1) <= (rows <= 16 ? 2048 : 1024);
}

/// x · weightᵀ by cuBLASLt, whose kernels are slow for a result whose rows are not a multiple of 16
/// bytes long, as logits of an odd vocabulary: computed with longer rows and copied.
at::Tensor product_of_odd_width(const at::Tensor& x, const at::Tensor& weight) {
  const int64_t columns = weight.size(0);
  const at::Tensor wide = at::empty({x.size(0), (columns + 7) / 8 * 8}, x.options());
  at::Tensor out = wide.narrow(1, 0, columns);
  cuda::gemm(out, {x}, {weight, /*transposed=*/true});
  return out.contiguous();
}

at::Tensor on_gpu(const at::Tensor& in, const at::Tensor& weight, const FewRows& options,
                  const std::vector<int64_t>& shape) {
  if (is_faster(in.size(0), weight) && cuda::thin_projection_serves(in, weight, options.norm)) {
    at::Tensor out = at::empty(shape, in.options());
    const at::Tensor residual =
        options.residual.defined() ? options.residual.contiguous() : options.residual;
    cuda::thin_projection(in, weight, {residual, options.norm, options.eps, options.gated}, out);
    return out;
  }
  const bool plain = !options.residual.defined() && !options.norm.defined() && !options.gated;
  if (plain && weight.size(0) > 1024 && weight.size(0) % 8 != 0 && weight.size(1) % 8 == 0) {
    return product_of_odd_width(in, weight).view(shape);
  }
  return {};
}
#endif

}  // namespace

at::Tensor few_rows_linear(const at::Tensor& x, const at::Tensor& weight, Kernels kernels,
                           const FewRows& options) {
  constexpr int64_t kMostRows = 64;
  if (kernels != Kernels::kFused || x.numel() == 0 || x.numel() > kMostRows * x.size(-1) ||
      needs_gradient(x, weight, options)) {
    return {};
  }
  const at::Tensor in = x.reshape({-1, x.size(-1)}).contiguous();
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0) / (options.gated ? 2 : 1);
  if (x.is_cpu()) return on_cpu(in, weight, options, shape);
#ifdef STABLEMASK_HAS_CUDA
  if (x.is_cuda() && x.scalar_type() == at::kBFloat16) return on_gpu(in, weight, options, shape);
#endif
  return {};
}

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
