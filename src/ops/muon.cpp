#include "stablemask/ops/muon.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "src/ops/newton_schulz.h"
#include "stablemask/ops/optimizer.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/muon.h"
#endif

namespace stablemask::ops {
namespace {

bool is_fused(const at::Tensor& x, Kernels kernels) {
#ifdef STABLEMASK_HAS_CUDA
  return kernels != Kernels::kReference && x.is_cuda();
#else
  (void)x, (void)kernels;
  return false;
#endif
}

bool is_flat(const at::Tensor& x, const at::Tensor& like) {
  return x.defined() && x.is_contiguous() && x.numel() == like.numel() &&
         x.device() == like.device();
}

bool is_sum(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
}

void check_muon_control(const char* op, const at::Tensor& control, const at::Tensor& x) {
  TORCH_CHECK(control.defined() && control.scalar_type() == at::kDouble &&
                  control.numel() == kUpdateControls && control.is_contiguous() &&
                  control.device() == x.device(),
              op, ": control must be fp64 [", kUpdateControls, "] on the buffers' device, got ",
              control.toString(), " ", control.sizes());
}

void check_matrices(const std::vector<at::Tensor>& matrices) {
  TORCH_CHECK(!matrices.empty(), "orthogonalize_: no matrices");
  for (const at::Tensor& x : matrices) {
    TORCH_CHECK(x.defined() && x.dim() == 3 && x.size(1) <= x.size(2) && x.is_floating_point(),
                "orthogonalize_: need floating point [n, rows, cols] with rows of at most cols, "
                "got ",
                x.toString(), " ", x.sizes());
    const at::Tensor& first = matrices[0];
    TORCH_CHECK(x.size(1) == first.size(1) && x.size(2) == first.size(2) &&
                    x.scalar_type() == first.scalar_type() && x.device() == first.device(),
                "orthogonalize_: all matrices must have one shape, dtype and device, got ",
                first.sizes(), " and ", x.sizes());
    const bool rows = x.stride(2) == 1 && x.stride(1) == x.size(2);
    const bool columns = x.stride(1) == 1 && x.stride(2) == x.size(1);
    TORCH_CHECK(rows || columns,
                "orthogonalize_: a matrix must be contiguous, or its transpose, got strides ",
                x.strides());
  }
}

/// The formula, on matrices of one tensor.
void orthogonalize_plainly(const at::Tensor& matrices, double scale) {
  using P = NewtonSchulz;
  const at::ScalarType type =
      matrices.scalar_type() == at::kBFloat16 ? at::kFloat : matrices.scalar_type();
  const at::Tensor given = matrices.to(type);
  const at::Tensor norm = given.square().sum({1, 2}, /*keepdim=*/true).sqrt();
  at::Tensor x = at::where(norm > 0, given / norm, 0.0);
  for (int i = 0; i < P::kIterations; ++i) {
    const at::Tensor squares = at::bmm(x, x.transpose(1, 2));
    const at::Tensor factor = at::baddbmm(squares, squares, squares, P::b, P::c);
    x = at::baddbmm(x, factor, x, P::a);
  }
  matrices.copy_(x * scale);
}

}  // namespace

void muon_momentum_(at::Tensor& momentum, at::Tensor& sum, const at::Tensor& grad, double mu,
                    const at::Tensor& control, Kernels kernels) {
  TORCH_CHECK(momentum.defined() && momentum.is_contiguous() && is_flat(grad, momentum) &&
                  is_flat(sum, momentum) && momentum.scalar_type() == at::kFloat &&
                  grad.scalar_type() == at::kFloat && is_sum(sum),
              "muon_momentum_: momentum and grad must be fp32, sum fp32 or bf16, all contiguous, "
              "of one size and device");
  check_muon_control("muon_momentum_", control, momentum);
  TORCH_CHECK(mu >= 0 && static_cast<float>(mu) < 1, "muon_momentum_: mu must be in [0, 1), got ",
              mu);
  const at::NoGradGuard no_grad;
#ifdef STABLEMASK_HAS_CUDA
  if (is_fused(momentum, kernels)) return cuda::muon_momentum_(momentum, sum, grad, mu, control);
#endif
  const double grad_scale = control[2].item<double>();
  if (grad_scale < 0) return;
  const at::Tensor g = grad * grad_scale;
  momentum.mul_(mu).add_(g);
  sum.copy_(g.add_(momentum, mu));
}

void orthogonalize_(const std::vector<at::Tensor>& matrices, double scale, Kernels kernels) {
  check_matrices(matrices);
  const at::NoGradGuard no_grad;
#ifdef STABLEMASK_HAS_CUDA
  if (is_fused(matrices[0], kernels) && matrices[0].scalar_type() == at::kBFloat16) {
    return cuda::orthogonalize_(matrices, scale);
  }
#endif
  for (const at::Tensor& some : matrices) orthogonalize_plainly(some, scale);
}

void muon_apply_(at::Tensor& weights, at::Tensor& remainder, const at::Tensor& update,
                 double weight_decay, const at::Tensor& control, Kernels kernels) {
  const bool split = remainder.defined();
  TORCH_CHECK(weights.defined() && weights.is_contiguous() && is_flat(update, weights) &&
                  is_sum(update) && (!split || is_flat(remainder, weights)) &&
                  weights.scalar_type() == (split ? at::kBFloat16 : at::kFloat) &&
                  (!split || remainder.scalar_type() == at::kShort),
              "muon_apply_: weights must be fp32, or bf16 with an int16 remainder, update fp32 or "
              "bf16, all contiguous, of one size and device");
  check_muon_control("muon_apply_", control, weights);
  TORCH_CHECK(weight_decay >= 0, "muon_apply_: weight_decay must be at least 0, got ",
              weight_decay);
  const at::NoGradGuard no_grad;
#ifdef STABLEMASK_HAS_CUDA
  if (is_fused(weights, kernels)) {
    return cuda::muon_apply_(weights, remainder, update, weight_decay, control);
  }
#endif
  const double lr = control[0].item<double>();
  if (control[2].item<double>() < 0) return;
  at::Tensor w = split ? join_weights({weights, remainder}) : weights;
  w.mul_(1.0 - lr * weight_decay).sub_(update, lr);
  if (!split) return;
  const SplitWeights parts = split_weights(w);
  weights.copy_(parts.rounded);
  remainder.copy_(parts.remainder);
}

}  // namespace stablemask::ops
