#include "stablemask/ops/adapter.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <numeric>
#include <optional>
#include <utility>

#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/functional_grad.h"
#include "src/ops/kernels.h"
#include "src/ops/products.h"

namespace stablemask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What an adapted product has besides its matrices; kept for the backward.
struct Terms : torch::CustomClassHolder {
  Terms(Adapter adapter_in, Dropout dropout_in, Kernels kernels_in)
      : adapter(std::move(adapter_in)), dropout(std::move(dropout_in)), kernels(kernels_in) {}

  /// Calls visit(j, first row, rows) for each W_j.
  template <class Visit>
  void for_each(const Visit& visit) const {
    int64_t first = 0;
    for (size_t j = 0; j < adapter.rows.size(); ++j) {
      visit(static_cast<int64_t>(j), first, adapter.rows[j]);
      first += adapter.rows[j];
    }
  }
  int64_t rank() const { return adapter.b.tensor().size(1); }
  /// x [rows, in] after the dropout, which is its own gradient.
  at::Tensor dropped(const at::Tensor& x) const {
    if (!dropout.drops()) return x;
    at::Tensor out = at::empty_like(x);
    STABLEMASK_KERNEL(x, dropout(x, dropout.key, dropout.stream, dropout.first_row * x.size(1),
                                 dropout.share, out));
    return out;
  }

  const Adapter adapter;
  const Dropout dropout;
  const Kernels kernels;
};

/// out [rows, out] += scale · x · (B·A)ᵀ; returns scale · x · Aᵀ [rows, k·r].
at::Tensor add_low_rank(at::Tensor& out, const at::Tensor& x, const Terms& terms) {
  const Adapter& adapter = terms.adapter;
  at::Tensor low = projected(x, adapter.a.tensor(), terms.kernels);
  if (adapter.scale != 1) low.mul_(adapter.scale);
  terms.for_each([&](int64_t j, int64_t first, int64_t count) {
    at::Tensor part = out.narrow(1, first, count);
    project_onto(part, low.narrow(1, j * terms.rank(), terms.rank()),
                 adapter.b.tensor().narrow(0, first, count), terms.kernels);
  });
  return low;
}

/// Gradient of B from dy [rows, out] and low = scale · x · Aᵀ, accumulated into b.grad() if it is
/// defined, else returned.
at::Tensor gradient_of_b(const at::Tensor& dy, const at::Tensor& low, const Terms& terms) {
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

/// scale · dy · B, the gradient of x · Aᵀ: [rows, k·r].
at::Tensor gradient_of_low(const at::Tensor& dy, const Terms& terms) {
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

/// Gradient of x [rows, in] through W and through the adapter.
at::Tensor gradient_of_x(const at::Tensor& dy, const at::Tensor& weight, const at::Tensor& dlow,
                         const Terms& terms) {
  at::Tensor dx = projected(dy, weight, terms.kernels, /*plain=*/true);
  const at::Tensor& a = terms.adapter.a.tensor();
  if (terms.dropout.drops()) {
    dx.add_(terms.dropped(projected(dlow, a, terms.kernels, /*plain=*/true)));
  } else {
    project_onto(dx, dlow, a, terms.kernels, /*plain=*/true);
  }
  return dx;
}

struct AdaptedLinear : torch::autograd::Function<AdaptedLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& a, const at::Tensor& b,
                            const std::optional<at::Tensor>& residual,
                            const c10::intrusive_ptr<Terms>& terms) {
    const at::Tensor in = rows(x);
    at::Tensor out = residual ? projected_onto(rows(*residual), in, weight, terms->kernels)
                              : projected(in, weight, terms->kernels);
    const at::Tensor low = add_low_rank(out, terms->dropped(in), *terms);
    ctx->save_for_backward({x, weight, a, b, low});
    ctx->saved_data["has_residual"] = residual.has_value();
    ctx->saved_data["terms"] = c10::IValue::make_capsule(terms);
    return out.view(with_last(x, weight.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto terms =
        c10::static_intrusive_pointer_cast<Terms>(ctx->saved_data["terms"].toCapsule());
    const at::Tensor &x = saved[0], &weight = saved[1], &a = saved[2];
    const at::Tensor dy = rows(grads[0]);
    variable_list out(6);
    const at::Tensor dlow = gradient_of_low(dy, *terms);
    if (ctx->needs_input_grad(3)) out[3] = gradient_of_b(dy, saved[4], *terms);
    if (ctx->needs_input_grad(2)) {
      out[2] =
          weight_grad(a, terms->adapter.a.mark(), dlow, terms->dropped(rows(x)), terms->kernels);
    }
    if (ctx->needs_input_grad(0)) {
      out[0] = gradient_of_x(dy, weight, dlow, *terms).view(x.sizes());
    }
    if (ctx->saved_data["has_residual"].toBool()) out[4] = grads[0];
    return out;
  }
};

void check_adapter(const at::Tensor& x, const at::Tensor& weight, const Adapter& adapter,
                   const Dropout& dropout) {
  check_projection("adapted_linear", x, weight);
  TORCH_CHECK(adapter.defined() && adapter.b.defined(), "adapted_linear: a factor is undefined");
  const at::Tensor &a = adapter.a.tensor(), &b = adapter.b.tensor();
  check_alike("adapted_linear", "x", x, "a", a);
  check_alike("adapted_linear", "x", x, "b", b);
  const auto count = static_cast<int64_t>(adapter.rows.size());
  const int64_t sum = std::accumulate(adapter.rows.begin(), adapter.rows.end(), int64_t{0});
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && b.size(1) > 0 && a.size(0) == count * b.size(1) &&
                  a.size(1) == weight.size(1) && b.size(0) == weight.size(0) &&
                  sum == weight.size(0),
              "adapted_linear: need a [k·r, in], b [out, r] and k rows of sum out for weight ",
              weight.sizes(), ", got ", a.sizes(), ", ", b.sizes(), " and rows ", adapter.rows);
  TORCH_CHECK(!weight.requires_grad(), "adapted_linear: the weight must not require a gradient");
  TORCH_CHECK(dropout.share >= 0 && dropout.share < 1,
              "adapted_linear: the dropout's share must be from 0 to below 1, got ", dropout.share);
}

}  // namespace

at::Tensor adapted_linear(const at::Tensor& x, const at::Tensor& weight, const Adapter& adapter,
                          const Dropout& dropout, const at::Tensor& residual, Kernels kernels) {
  check_adapter(x, weight, adapter, dropout);
  std::optional<at::Tensor> added;  // an argument of autograd cannot be undefined
  if (residual.defined()) {
    added = residual;
    check_alike("adapted_linear", "x", x, "residual", residual);
    TORCH_CHECK(residual.sizes() == at::IntArrayRef(with_last(x, weight.size(0))),
                "adapted_linear: residual ", residual.sizes(), " does not fit x ", x.sizes(),
                " and weight ", weight.sizes());
  }
  return AdaptedLinear::apply(x, weight, adapter.a.tensor(), adapter.b.tensor(), added,
                              c10::make_intrusive<Terms>(adapter, dropout, kernels));
}

}  // namespace stablemask::ops
