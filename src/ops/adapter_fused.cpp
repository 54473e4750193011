#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "src/ops/adapter_terms.h"
#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/functional_grad.h"
#include "src/ops/fused_projections.h"
#include "src/ops/kernels.h"
#include "stablemask/ops/adapter.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

/// Adapted products with an elementwise epilogue. The adapter is a longer inner dimension of the
/// one product, so that the fused kernels compute it too and no pass over the result is needed:
///     x · Wᵀ + low · Bᵀ = [x | low] · [W | B]ᵀ,  low = scale · D(x) · Aᵀ.
namespace stablemask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kRopeTerms = "rope_terms";
constexpr const char* kUpTerms = "up_terms";
constexpr const char* kDownTerms = "down_terms";

/// Of the low-rank part: the fused kernels read rows whose bytes are a multiple of 16.
int64_t padded_rank(const AdapterTerms& terms) {
  constexpr int64_t kPack = 8;
  return (terms.adapter.a.tensor().size(0) + kPack - 1) / kPack * kPack;
}

/// [x | low | 0], [rows, in + padded_rank].
at::Tensor extended_input(const at::Tensor& x, const AdapterTerms& terms) {
  const int64_t in = x.size(1), low_size = terms.adapter.a.tensor().size(0),
                pad = padded_rank(terms);
  at::Tensor all = at::empty({x.size(0), in + pad}, x.options());
  all.narrow(1, 0, in).copy_(x);
  at::Tensor low = all.narrow(1, in, low_size);
  low_rank_input(low, x, terms);
  if (pad > low_size) all.narrow(1, in + low_size, pad - low_size).zero_();
  return all;
}

/// [W | B | 0], [out, in + padded_rank]: B_j in the rows of W_j and the columns of its part of low.
at::Tensor extended_weight(const at::Tensor& weight, const AdapterTerms& terms) {
  const int64_t in = weight.size(1), pad = padded_rank(terms);
  const at::Tensor all = at::empty({weight.size(0), in + pad}, weight.options());
  all.narrow(1, 0, in).copy_(weight);
  const at::Tensor tail = all.narrow(1, in, pad).zero_();
  terms.for_each([&](int64_t j, int64_t first, int64_t count) {
    tail.narrow(0, first, count)
        .narrow(1, j * terms.rank(), terms.rank())
        .copy_(terms.adapter.b.tensor().narrow(0, first, count));
  });
  return all;
}

/// The low-rank part of extended_input, in memory of its own.
at::Tensor low_of(const at::Tensor& extended, int64_t in, const AdapterTerms& terms) {
  return extended.narrow(1, in, terms.adapter.a.tensor().size(0)).contiguous();
}

struct AdaptedRope : torch::autograd::Function<AdaptedRope> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& a, const at::Tensor& b, const Terms& terms,
                            int64_t packed_heads, int64_t heads, int64_t dims,
                            const at::Tensor& positions, const at::Tensor& table) {
    const at::Tensor in = extended_input(rows(x), *terms), w = extended_weight(weight, *terms);
    at::Tensor packed =
        at::empty({x.size(0), x.size(1), packed_heads, weight.size(0) / packed_heads}, x.options());
    if (!project_rope(in, w, heads, dims, positions, table, packed)) {
      at::Tensor flat = packed.view({-1, weight.size(0)});
      project(flat, in, w, terms->kernels);
      STABLEMASK_KERNEL(packed, rope_(packed, heads, dims, positions, table, /*inverse=*/false));
    }
    ctx->saved_data["heads"] = heads;
    ctx->saved_data["dims"] = dims;
    save_terms(ctx, kRopeTerms, terms);
    ctx->save_for_backward({x, weight, a, b, low_of(in, x.size(2), *terms), positions, table});
    return packed;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Terms terms = load_terms(ctx, kRopeTerms);
    const int64_t heads = ctx->saved_data["heads"].toInt(), dims = ctx->saved_data["dims"].toInt();
    const at::Tensor &x = saved[0], &weight = saved[1];
    at::Tensor dpacked = writable(grads[0]);
    STABLEMASK_KERNEL(dpacked, rope_(dpacked, heads, dims, saved[5], saved[6], /*inverse=*/true));
    const at::Tensor dy = dpacked.view({-1, weight.size(0)});
    const at::Tensor dlow = gradient_of_low(dy, *terms);
    variable_list out(10);
    const FactorGradients factors = gradients_of_factors(dy, dlow, rows(x), saved[4], *terms);
    out[2] = factors.a;
    out[3] = factors.b;
    if (ctx->needs_input_grad(0)) {
      out[0] = gradient_of_x(dy, weight, dlow, *terms).view(x.sizes());
    }
    return out;
  }
};

/// Gradient of gate_up from dy [rows, C] of the layer's result. The product with [down; A] has the
/// inner dimension of [dy | dlow].
at::Tensor gradient_of_gate_up(const at::Tensor& dy, const at::Tensor& dlow, const at::Tensor& down,
                               const at::Tensor& gate_up, const AdapterTerms& terms) {
  at::Tensor dgate_up = at::empty_like(gate_up);
#ifdef STABLEMASK_HAS_CUDA
  if (has_gemm(dy, terms.kernels) && !terms.dropout.drops()) {
    const int64_t low_size = dlow.size(1), pad = padded_rank(terms);
    const at::Tensor none = at::zeros({dy.size(0), pad - low_size}, dy.options());
    const at::Tensor no_rows = at::zeros({pad - low_size, down.size(1)}, down.options());
    const at::Tensor in = at::cat({dy, dlow, none}, 1),
                     weight = at::cat({down, terms.adapter.a.tensor(), no_rows}, 0);
    if (project_swiglu_backward(in, weight, gate_up, dgate_up)) return dgate_up;
  }
#endif
  const at::Tensor dhidden = gradient_of_x(dy, down, dlow, terms);
  STABLEMASK_KERNEL(gate_up, swiglu_backward(dhidden, gate_up, dgate_up));
  return dgate_up;
}

struct AdaptedSwiglu : torch::autograd::Function<AdaptedSwiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& residual,
                            const at::Tensor& up, const at::Tensor& a_up, const at::Tensor& b_up,
                            const Terms& up_terms, const at::Tensor& down, const at::Tensor& a_down,
                            const at::Tensor& b_down, const Terms& down_terms) {
    const at::Tensor in = extended_input(rows(x), *up_terms), w = extended_weight(up, *up_terms);
    const int64_t features = down.size(1);
    at::Tensor gate_up = at::empty({in.size(0), 2 * features}, x.options());
    at::Tensor hidden = at::empty({in.size(0), features}, x.options());
    if (!project_swiglu(in, w, gate_up, hidden)) {
      project(gate_up, in, w, up_terms->kernels);
      STABLEMASK_KERNEL(gate_up, swiglu_forward(gate_up, hidden));
    }
    at::Tensor out = projected_onto(rows(residual), hidden, down, down_terms->kernels);
    const at::Tensor down_low = add_low_rank(out, hidden, *down_terms);
    save_terms(ctx, kUpTerms, up_terms);
    save_terms(ctx, kDownTerms, down_terms);
    ctx->save_for_backward({x, up, a_up, b_up, low_of(in, up.size(1), *up_terms), down, a_down,
                            b_down, down_low, gate_up, hidden});
    return out.view(residual.sizes());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Terms up_terms = load_terms(ctx, kUpTerms), down_terms = load_terms(ctx, kDownTerms);
    const at::Tensor &x = saved[0], &up = saved[1], &down = saved[5], &gate_up = saved[9];
    const at::Tensor dy = rows(grads[0]);
    variable_list out(10);
    out[1] = grads[0];
    const at::Tensor down_dlow = gradient_of_low(dy, *down_terms);
    const FactorGradients of_down =
        gradients_of_factors(dy, down_dlow, saved[10], saved[8], *down_terms);
    out[7] = of_down.a;
    out[8] = of_down.b;
    const at::Tensor dgate_up = gradient_of_gate_up(dy, down_dlow, down, gate_up, *down_terms);
    const at::Tensor up_dlow = gradient_of_low(dgate_up, *up_terms);
    const FactorGradients of_up =
        gradients_of_factors(dgate_up, up_dlow, rows(x), saved[4], *up_terms);
    out[3] = of_up.a;
    out[4] = of_up.b;
    if (ctx->needs_input_grad(0)) {
      out[0] = gradient_of_x(dgate_up, up, up_dlow, *up_terms).view(x.sizes());
    }
    return out;
  }
};

}  // namespace

at::Tensor adapted_rope_linear(const at::Tensor& x, const at::Tensor& weight,
                               const Adapter& adapter, const Dropout& dropout, int64_t packed_heads,
                               int64_t heads_rotated, const RopeInputs& rope_inputs,
                               Kernels kernels) {
  check_adapter("adapted_rope_linear", x, weight, adapter, dropout);
  TORCH_CHECK(x.dim() == 3 && packed_heads > 0 && weight.size(0) % packed_heads == 0,
              "adapted_rope_linear: x ", x.sizes(), " does not fit weight ", weight.sizes(), " of ",
              packed_heads, " heads");
  const auto& [dims, positions, table] = rope_inputs;
  const int64_t head_dim = weight.size(0) / packed_heads;
  check_rope(x, {x.size(0), x.size(1), packed_heads, head_dim}, heads_rotated, dims, positions,
             table);
  if (!has_fused_kernels(x, kernels)) {
    const at::Tensor packed = adapted_linear(x, weight, adapter, dropout, {}, kernels)
                                  .view({x.size(0), x.size(1), packed_heads, head_dim});
    return reference::rope(packed, heads_rotated, dims, positions, table);
  }
  return AdaptedRope::apply(x, weight, adapter.a.tensor(), adapter.b.tensor(),
                            c10::make_intrusive<AdapterTerms>(adapter, dropout, kernels),
                            packed_heads, heads_rotated, dims, positions.contiguous(),
                            table.contiguous());
}

at::Tensor adapted_swiglu_feed_forward(const at::Tensor& x, const AdaptedWeight& up,
                                       const AdaptedWeight& down, const at::Tensor& residual,
                                       Kernels kernels) {
  check_feed_forward("adapted_swiglu_feed_forward", x, up.weight, down.weight, residual);
  check_adapter("adapted_swiglu_feed_forward: up", x, up.weight, up.adapter, up.dropout);
  TORCH_CHECK(down.adapter.defined() && !down.weight.requires_grad(),
              "adapted_swiglu_feed_forward: down needs an adapter and a constant weight");
  if (!has_fused_kernels(x, kernels)) {
    const at::Tensor hidden =
        reference::swiglu(adapted_linear(x, up.weight, up.adapter, up.dropout, {}, kernels));
    return adapted_linear(hidden, down.weight, down.adapter, down.dropout, residual, kernels);
  }
  return AdaptedSwiglu::apply(
      x, residual, up.weight, up.adapter.a.tensor(), up.adapter.b.tensor(),
      c10::make_intrusive<AdapterTerms>(up.adapter, up.dropout, kernels), down.weight,
      down.adapter.a.tensor(), down.adapter.b.tensor(),
      c10::make_intrusive<AdapterTerms>(down.adapter, down.dropout, kernels));
}

}  // namespace stablemask::ops
