#include "src/ops/cuda/muon.h"

#include <ATen/ATen.h>

#include <utility>

#include "src/ops/cuda/fused_gemm.h"
#include "src/ops/cuda/muon_launchers.h"
#include "src/ops/cuda/run.h"
#include "src/ops/newton_schulz.h"

namespace stablemask::ops::cuda {
namespace {

DType rounded_type(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
}

/// The matrices of `from` divided by their norms, in `to`, contiguous.
void normalize(const at::Tensor& from, const at::Tensor& to) {
  NormalizeMatrices p{};
  p.matrices = from.size(0);
  p.transposed = from.stride(2) != 1;
  p.rows = from.size(p.transposed ? 2 : 1);
  p.cols = from.size(p.transposed ? 1 : 2);
  p.stride = from.stride(0);
  p.from = from.const_data_ptr();
  p.to = to.data_ptr();
  const at::Tensor partials =
      at::empty({p.matrices, NormalizeMatrices::kPartials}, to.options().dtype(at::kFloat));
  p.partials = partials.data_ptr<float>();
  run("orthogonalize", p, from);
}

/// out = factor·x·xᵀ + diagonal·I of each matrix.
void symmetric_product(at::Tensor& out, const at::Tensor& x, double factor, double diagonal) {
  if (symmetric_product_runs_here(x.size(1), x.size(2))) {
    SymmetricProduct p{};
    p.x = x.const_data_ptr();
    p.out = out.data_ptr();
    p.matrices = x.size(0);
    p.rows = x.size(1);
    p.inner = x.size(2);
    p.factor = static_cast<float>(factor);
    p.diagonal = static_cast<float>(diagonal);
    return run("symmetric_product", p, x);
  }
  out.baddbmm_(x, x.transpose(1, 2), /*beta=*/0, factor);
  out.diagonal(0, 1, 2).add_(diagonal);
}

}  // namespace

void muon_momentum_(at::Tensor& momentum, at::Tensor& sum, const at::Tensor& grad, double mu,
                    const at::Tensor& control) {
  MuonMomentum p{};
  p.momentum = momentum.data_ptr<float>();
  p.sum = sum.data_ptr();
  p.grad = grad.const_data_ptr<float>();
  p.size = momentum.numel();
  p.mu = static_cast<float>(mu);
  p.control = control.const_data_ptr<double>();
  p.dtype = rounded_type(sum);
  run("muon_momentum", p, momentum);
}

void orthogonalize_(const std::vector<at::Tensor>& matrices, double scale) {
  using P = NewtonSchulz;
  const int64_t rows = matrices[0].size(1), columns = matrices[0].size(2);
  int64_t count = 0;
  for (const at::Tensor& some : matrices) count += some.size(0);
  if (count == 0 || rows == 0) return;
  const c10::cuda::CUDAGuard guard(matrices[0].device());
  at::Tensor x = at::empty({count, rows, columns}, matrices[0].options());
  at::Tensor next = at::empty_like(x);
  at::Tensor shifted = at::empty({count, rows, rows}, x.options());
  at::Tensor factor = at::empty_like(shifted);
  const auto for_each = [&](const auto& work) {
    int64_t first = 0;
    for (const at::Tensor& some : matrices) {
      if (some.size(0) > 0) work(some, first);
      first += some.size(0);
    }
  };
  for_each([&](const at::Tensor& some, int64_t first) {
    normalize(some, x.narrow(0, first, some.size(0)));
  });
  for (int i = 1; i <= P::kIterations; ++i) {
    const bool last = i == P::kIterations;
    const double times = last ? scale : 1.0;
    // a·I + b·A + c·A² = c·(A + b/(2c)·I)² + (a − b²/(4c))·I: each product ends in a diagonal.
    symmetric_product(shifted, x, 1.0, P::b / (2 * P::c));
    symmetric_product(factor, shifted, times * P::c, times * (P::a - P::b * P::b / (4 * P::c)));
    if (!last) {
      at::bmm_out(next, factor, x);
      std::swap(x, next);
      continue;
    }
    for_each([&](const at::Tensor& some, int64_t first) {
      at::Tensor out = some;
      at::bmm_out(out, factor.narrow(0, first, some.size(0)), x.narrow(0, first, some.size(0)));
    });
  }
}

void muon_apply_(at::Tensor& weights, at::Tensor& remainder, const at::Tensor& update,
                 double weight_decay, const at::Tensor& control) {
  MuonApply p{};
  p.weights = weights.data_ptr();
  p.remainder = remainder.defined() ? remainder.data_ptr<int16_t>() : nullptr;
  p.update = update.const_data_ptr();
  p.size = weights.numel();
  p.weight_decay = weight_decay;
  p.control = control.const_data_ptr<double>();
  p.dtype = rounded_type(update);
  run("muon_apply", p, weights);
}

}  // namespace stablemask::ops::cuda
