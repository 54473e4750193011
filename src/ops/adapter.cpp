#include "stablemask/ops/adapter.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>
#include <optional>

#include "src/ops/adapter_terms.h"
#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/functional_grad.h"
#include "src/ops/kernels.h"

namespace stablemask::ops {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor AdapterTerms::dropped(const at::Tensor& x) const {
  if (!dropout.drops()) return x;
  at::Tensor out = at::empty_like(x);
  STABLEMASK_KERNEL(x, dropout(x, dropout.key, dropout.stream, dropout.first_row * x.size(1),
                               dropout.share, out));
  return out;
}

void check_adapter(const char* op, const at::Tensor& x, const at::Tensor& weight,
                   const Adapter& adapter, const Dropout& dropout) {
  check_projection(op, x, weight);
  TORCH_CHECK(adapter.defined() && adapter.b.defined(), op, ": a factor is undefined");
  const at::Tensor &a = adapter.a.tensor(), &b = adapter.b.tensor();
  check_alike(op, "x", x, "a", a);
  check_alike(op, "x", x, "b", b);
  const auto count = static_cast<int64_t>(adapter.rows.size());
  const int64_t sum = std::accumulate(adapter.rows.begin(), adapter.rows.end(), int64_t{0});
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && b.size(1) > 0 && a.size(0) == count * b.size(1) &&
                  a.size(1) == weight.size(1) && b.size(0) == weight.size(0) &&
                  sum == weight.size(0),
              op, ": need a [k·r, in], b [out, r] and k rows of sum out for weight ",
              weight.sizes(), ", got ", a.sizes(), ", ", b.sizes(), " and rows ", adapter.rows);
  TORCH_CHECK(!weight.requires_grad(), op, ": the weight must not require a gradient");
  TORCH_CHECK(dropout.share >= 0 && dropout.share < 1, op,
              ": the dropout's share must be from 0 to below 1, got ", dropout.share);
}

void low_rank_input(at::Tensor& low, const at::Tensor& x, const AdapterTerms& terms) {
  project(low, terms.dropped(x), terms.adapter.a.tensor(), terms.kernels);
  if (terms.adapter.scale != 1) low.mul_(terms.adapter.scale);
}

at::Tensor add_low_rank(at::Tensor& out, const at::Tensor& x, const AdapterTerms& terms) {
  const Adapter& adapter = terms.adapter;
  at::Tensor low = at::empty({x.size(0), adapter.a.tensor().size(0)}, x.options());
  low_rank_input(low, x, terms);
  terms.for_each([&](int64_t j, int64_t first, int64_t count) {
    at::Tensor part = out.narrow(1, first, count);
    project_onto(part, low.narrow(1, j * terms.rank(), terms.rank()),
                 adapter.b.tensor().narrow(0, first, count), terms.kernels);
  });
  return low;
}

namespace {

at::Tensor gradient_of_b(const at::Tensor& dy, const at::Tensor& low, const AdapterTerms& terms) {
  const at::Tensor& b = terms.adapter.b.tensor();
  const at::Tensor existing = existing_grad(b);
  const double beta = existing.defined() ? gradient_beta(terms.adapter.b.mark()) : 0.0;
  const at::Tensor grad = existing.defined() ? existing : at::empty_like(b);
  terms.for_each([&](int64_t j, int64_t first, int64_t count) {
    at::Tensor part = grad.narrow(0, first, count);
    accumulate_gemm(part, dy.narrow(1, first, count), low.narrow(1, j * terms.rank(), terms.rank()),
                    beta, terms.kernels);
  });
  return existing.defined() ? at::Tensor() : grad;
}

}  // namespace

at::Tensor gradient_of_low(const at::Tensor& dy, const AdapterTerms& terms) {
  const Adapter& adapter = terms.adapter;
  at::Tensor dlow = at::empty({dy.size(0), adapter.a.tensor().size(0)}, dy.options());
  terms.for_each([&](int64_t j, int64_t first, int64_t count) {
    at::Tensor part = dlow.narrow(1, j * terms.rank(), terms.rank());
    project(part, dy.narrow(1, first, count), adapter.b.tensor().narrow(0, first, count),
            terms.kernels, /*plain=*/true);
  });
  if (adapter.scale != 1) dlow.mul_(adapter.scale);
  return dlow;
}

at::Tensor gradient_of_x(const at::Tensor& dy, const at::Tensor& weight, const at::Tensor& dlow,
                         const AdapterTerms& terms) {
  at::Tensor dx = projected(dy, weight, terms.kernels, /*plain=*/true);
  const at::Tensor& a = terms.adapter.a.tensor();
  if (terms.dropout.drops()) {
    dx.add_(terms.dropped(projected(dlow, a, terms.kernels, /*plain=*/true)));
  } else {
    project_onto(dx, dlow, a, terms.kernels, /*plain=*/true);
  }
  return dx;
}

FactorGradients gradients_of_factors(const at::Tensor& dy, const at::Tensor& dlow,
                                     const at::Tensor& x, const at::Tensor& low,
                                     const AdapterTerms& terms) {
  const Weight &a = terms.adapter.a, &b = terms.adapter.b;
  FactorGradients grads;
  if (b.tensor().requires_grad()) grads.b = gradient_of_b(dy, low, terms);
  if (a.tensor().requires_grad()) {
    grads.a = weight_grad(a.tensor(), a.mark(), dlow, terms.dropped(x), terms.kernels);
  }
  return grads;
}

void save_terms(AutogradContext* ctx, const char* key, const Terms& terms) {
  ctx->saved_data[key] = c10::IValue::make_capsule(terms);
}

Terms load_terms(AutogradContext* ctx, const char* key) {
  return c10::static_intrusive_pointer_cast<AdapterTerms>(ctx->saved_data[key].toCapsule());
}

namespace {

constexpr const char* kTerms = "terms";

struct AdaptedLinear : torch::autograd::Function<AdaptedLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& a, const at::Tensor& b,
                            const std::optional<at::Tensor>& residual, const Terms& terms) {
    const at::Tensor in = rows(x);
    at::Tensor out = residual ? projected_onto(rows(*residual), in, weight, terms->kernels)
                              : projected(in, weight, terms->kernels);
    const at::Tensor low = add_low_rank(out, in, *terms);
    ctx->save_for_backward({x, weight, a, b, low});
    ctx->saved_data["has_residual"] = residual.has_value();
    save_terms(ctx, kTerms, terms);
    return out.view(with_last(x, weight.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Terms terms = load_terms(ctx, kTerms);
    const at::Tensor &x = saved[0], dy = rows(grads[0]);
    const at::Tensor dlow = gradient_of_low(dy, *terms);
    variable_list out(6);
    const FactorGradients factors = gradients_of_factors(dy, dlow, rows(x), saved[4], *terms);
    out[2] = factors.a;
    out[3] = factors.b;
    if (ctx->needs_input_grad(0)) {
      out[0] = gradient_of_x(dy, saved[1], dlow, *terms).view(x.sizes());
    }
    if (ctx->saved_data["has_residual"].toBool()) out[4] = grads[0];
    return out;
  }
};

}  // namespace

at::Tensor adapted_linear(const at::Tensor& x, const at::Tensor& weight, const Adapter& adapter,
                          const Dropout& dropout, const at::Tensor& residual, Kernels kernels) {
  check_adapter("adapted_linear", x, weight, adapter, dropout);
  std::optional<at::Tensor> added;  // an argument of autograd cannot be undefined
  if (residual.defined()) {
    added = residual;
    check_alike("adapted_linear", "x", x, "residual", residual);
    TORCH_CHECK(residual.sizes() == at::IntArrayRef(with_last(x, weight.size(0))),
                "adapted_linear: residual ", residual.sizes(), " does not fit x ", x.sizes(),
                " and weight ", weight.sizes());
  }
  return AdaptedLinear::apply(x, weight, adapter.a.tensor(), adapter.b.tensor(), added,
                              c10::make_intrusive<AdapterTerms>(adapter, dropout, kernels));
}

}  // namespace stablemask::ops
