#include "stablemask/ops/adapter.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>
#include <optional>

#include "src/ops/adapter_terms.h"
#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/functional_grad.h"
#include "src/ops/fused_projections.h"
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

at::Tensor AdapterTerms::input(const at::Tensor& kept) const {
  return rows(norm.defined() ? rms_norm(kept, norm.detach(), eps, kernels) : kept);
}

bool AdapterTerms::fuses([[maybe_unused]] const at::Tensor& x) const {
#ifdef STABLEMASK_HAS_CUDA
  constexpr int64_t kTileRows = 256;  // fewer, as in decoding, are not worth a fused kernel
  return x.size(0) >= kTileRows && has_gemm(x, kernels);
#else
  return false;
#endif
}

namespace {

/// `columns` elements or more: on a GPU a multiple of 16 bytes, which fast products need of rows.
int64_t row_stride(int64_t columns, const at::Tensor& like) {
  const int64_t pack = like.is_cuda() ? 16 / like.element_size() : 1;
  return (columns + pack - 1) / pack * pack;
}

at::Tensor empty_rows(int64_t rows, int64_t columns, const at::Tensor& like) {
  return at::empty({rows, row_stride(columns, like)}, like.options()).narrow(1, 0, columns);
}

}  // namespace

at::Tensor AdapterTerms::wide_b(const at::Tensor& x) const {
  if (!fuses(x)) return {};
  const at::Tensor& b = adapter.b.tensor();
  const int64_t low_size = adapter.a.tensor().size(0);
  if (low_size == rank() && b.is_contiguous() && row_stride(rank(), b) == rank()) {
    return b.detach();
  }
  const at::Tensor wide = empty_rows(b.size(0), low_size, b).zero_();
  for_each([&](int64_t j, int64_t first, int64_t count) {
    wide.narrow(0, first, count).narrow(1, j * rank(), rank()).copy_(b.narrow(0, first, count));
  });
  return wide;
}

void check_adapter(const char* op, const Input& input, const at::Tensor& weight,
                   const Adapter& adapter, const Dropout& dropout) {
  const at::Tensor& x = input.x;
  check_projection(op, x, weight);
  TORCH_CHECK(input.source.defined() == input.norm.defined() &&
                  (!input.source.defined() || input.source.sizes() == x.sizes()),
              op, ": x ", x.sizes(), " cannot be the norm of ",
              input.source.defined() ? "another shape" : "nothing");
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

at::Tensor low_rank_input(const at::Tensor& x, const AdapterTerms& terms) {
  const Adapter& adapter = terms.adapter;
  at::Tensor low = empty_rows(x.size(0), adapter.a.tensor().size(0), x);
  project(low, terms.dropped(x), adapter.a.tensor(), terms.kernels, /*plain=*/false, adapter.scale);
  return low;
}

void add_low_rank(at::Tensor& out, const at::Tensor& low, const AdapterTerms& terms) {
  terms.for_each([&](int64_t j, int64_t first, int64_t count) {
    at::Tensor part = out.narrow(1, first, count);
    project_onto(part, low.narrow(1, j * terms.rank(), terms.rank()),
                 terms.adapter.b.tensor().narrow(0, first, count), terms.kernels);
  });
}

AdaptedProduct adapted_product(const at::Tensor& residual, const at::Tensor& x,
                               const at::Tensor& weight, const AdapterTerms& terms) {
  AdaptedProduct result{{}, low_rank_input(x, terms), terms.wide_b(x)};
  auto& [out, low, wide_b] = result;
  if (terms.fuses(x)) {
    out = at::empty({x.size(0), weight.size(0)}, x.options());
    if (project_sum(x, weight, {low, wide_b}, residual, /*plain=*/false, out)) return result;
  }
  out = residual.defined() ? projected_onto(residual, x, weight, terms.kernels)
                           : projected(x, weight, terms.kernels);
  add_low_rank(out, low, terms);
  return result;
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

at::Tensor gradient_of_low(const at::Tensor& dy, const at::Tensor& wide_b,
                           const AdapterTerms& terms) {
  const Adapter& adapter = terms.adapter;
  at::Tensor dlow = empty_rows(dy.size(0), adapter.a.tensor().size(0), dy);
  if (wide_b.defined()) {
    project(dlow, dy, wide_b, terms.kernels, /*plain=*/true, adapter.scale);
    return dlow;
  }
  terms.for_each([&](int64_t j, int64_t first, int64_t count) {
    at::Tensor part = dlow.narrow(1, j * terms.rank(), terms.rank());
    project(part, dy.narrow(1, first, count), adapter.b.tensor().narrow(0, first, count),
            terms.kernels, /*plain=*/true, adapter.scale);
  });
  return dlow;
}

at::Tensor gradient_of_x(const at::Tensor& dy, const at::Tensor& weight, const at::Tensor& dlow,
                         const AdapterTerms& terms) {
  const at::Tensor& a = terms.adapter.a.tensor();
  const bool drops = terms.dropout.drops();
  at::Tensor dx = at::empty({dy.size(0), weight.size(1)}, dy.options());
  if (!drops && terms.fuses(dy) && project_sum(dy, weight, {dlow, a}, {}, /*plain=*/true, dx)) {
    return dx;
  }
  project(dx, dy, weight, terms.kernels, /*plain=*/true);
  if (drops) {
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
                            const std::optional<at::Tensor>& residual, const Input& input,
                            const Terms& terms) {
    const auto [out, low, wide_b] =
        adapted_product(residual ? rows(*residual) : at::Tensor(), rows(x), weight, *terms);
    ctx->save_for_backward({kept(input), weight, a, b, low, wide_b});
    ctx->saved_data["has_residual"] = residual.has_value();
    save_terms(ctx, kTerms, terms);
    return out.view(with_last(x, weight.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Terms terms = load_terms(ctx, kTerms);
    const at::Tensor& weight = saved[1];
    const at::Tensor dy = rows(grads[0]), dlow = gradient_of_low(dy, saved[5], *terms);
    variable_list out(7);
    const FactorGradients factors =
        gradients_of_factors(dy, dlow, terms->input(saved[0]), saved[4], *terms);
    out[2] = factors.a;
    out[3] = factors.b;
    if (ctx->needs_input_grad(0)) {
      out[0] = gradient_of_x(dy, weight, dlow, *terms).view(with_last(grads[0], weight.size(1)));
    }
    if (ctx->saved_data["has_residual"].toBool()) out[4] = grads[0];
    return out;
  }
};

}  // namespace

at::Tensor adapted_linear(const Input& input, const at::Tensor& weight, const Adapter& adapter,
                          const Dropout& dropout, const at::Tensor& residual, Kernels kernels) {
  check_adapter("adapted_linear", input, weight, adapter, dropout);
  const at::Tensor& x = input.x;
  std::optional<at::Tensor> added;  // an argument of autograd cannot be undefined
  if (residual.defined()) {
    added = residual;
    check_alike("adapted_linear", "x", x, "residual", residual);
    TORCH_CHECK(residual.sizes() == at::IntArrayRef(with_last(x, weight.size(0))),
                "adapted_linear: residual ", residual.sizes(), " does not fit x ", x.sizes(),
                " and weight ", weight.sizes());
  }
  return AdaptedLinear::apply(x, weight, adapter.a.tensor(), adapter.b.tensor(), added, input,
                              c10::make_intrusive<AdapterTerms>(adapter, dropout, kernels, input));
}

}  // namespace stablemask::ops
