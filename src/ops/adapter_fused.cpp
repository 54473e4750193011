#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "src/ops/adapter_terms.h"
#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/epilogues.h"
#include "src/ops/functional_grad.h"
#include "stablemask/ops/adapter.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

/// Adapted products with an elementwise epilogue. The low-rank product is a second pair of factors
/// of the fused kernels, so that no pass over the result is needed.
namespace stablemask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kRopeTerms = "rope_terms";
constexpr const char* kUpTerms = "up_terms";
constexpr const char* kDownTerms = "down_terms";

/// Where no fused kernel runs: out = x · weightᵀ + low · Bᵀ.
void project_adapted(at::Tensor& out, const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& low, const AdapterTerms& terms) {
  project(out, x, weight, terms.kernels);
  add_low_rank(out, low, terms);
}

struct AdaptedRope : torch::autograd::Function<AdaptedRope> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& a, const at::Tensor& b, const Input& input,
                            const Terms& terms, const RopeOfHeads& rope) {
    const at::Tensor in = rows(x), low = low_rank_input(in, *terms), wide_b = terms->wide_b(in);
    save_rope(ctx, rope);
    save_terms(ctx, kRopeTerms, terms);
    ctx->save_for_backward({kept(input), weight, a, b, low, wide_b, rope.positions, rope.table});
    return rotated_product(x, weight, {low, wide_b}, rope,
                           [&](at::Tensor& out) { project_adapted(out, in, weight, low, *terms); });
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Terms terms = load_terms(ctx, kRopeTerms);
    const at::Tensor &weight = saved[1],
                     dy = unrotated(grads[0], load_rope(ctx, saved[6], saved[7])),
                     dlow = gradient_of_low(dy, saved[5], *terms);
    variable_list out(7);
    const FactorGradients factors =
        gradients_of_factors(dy, dlow, terms->input(saved[0]), saved[4], *terms);
    out[2] = factors.a;
    out[3] = factors.b;
    if (ctx->needs_input_grad(0)) {
      out[0] = gradient_of_x(dy, weight, dlow, *terms)
                   .view({grads[0].size(0), grads[0].size(1), weight.size(1)});
    }
    return out;
  }
};

/// From dy [rows, C] of the layer's result: the gradient of gate_up, and silu(gate) · up, which
/// down's adapter multiplied.
struct GateUpGradient {
  at::Tensor dgate_up, hidden;
};
GateUpGradient gradient_of_gate_up(const at::Tensor& dy, const at::Tensor& dlow,
                                   const at::Tensor& down, const at::Tensor& gate_up,
                                   const AdapterTerms& terms) {
  at::Tensor dgate_up = at::empty_like(gate_up),
             hidden = at::empty({gate_up.size(0), down.size(1)}, gate_up.options());
  const SecondFactors second{dlow, terms.adapter.a.tensor()};
  if (!terms.dropout.drops() && terms.fuses(dy) &&
      project_swiglu_backward(dy, down, gate_up, dgate_up, second, hidden)) {
    return {dgate_up, hidden};
  }
  const at::Tensor dhidden = gradient_of_x(dy, down, dlow, terms);
  STABLEMASK_KERNEL(gate_up, swiglu_backward(dhidden, gate_up, dgate_up));
  STABLEMASK_KERNEL(gate_up, swiglu_forward(gate_up, hidden));
  return {dgate_up, hidden};
}

struct AdaptedSwiglu : torch::autograd::Function<AdaptedSwiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& residual,
                            const at::Tensor& up, const at::Tensor& a_up, const at::Tensor& b_up,
                            const at::Tensor& down, const at::Tensor& a_down,
                            const at::Tensor& b_down, const Input& input, const Terms& up_terms,
                            const Terms& down_terms) {
    const at::Tensor in = rows(x), low = low_rank_input(in, *up_terms),
                     wide_b = up_terms->wide_b(in);
    const auto [gate_up, hidden] = gated_product(in, up, {low, wide_b}, [&](at::Tensor& out) {
      project_adapted(out, in, up, low, *up_terms);
    });
    const auto [out, down_low, down_wide_b] =
        adapted_product(rows(residual), hidden, down, *down_terms);
    save_terms(ctx, kUpTerms, up_terms);
    save_terms(ctx, kDownTerms, down_terms);
    ctx->save_for_backward({kept(input), up, a_up, b_up, low, wide_b, down, a_down, b_down,
                            down_low, down_wide_b, gate_up});
    return out.view(residual.sizes());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Terms up_terms = load_terms(ctx, kUpTerms), down_terms = load_terms(ctx, kDownTerms);
    const at::Tensor &up = saved[1], &down = saved[6], dy = rows(grads[0]),
                     down_dlow = gradient_of_low(dy, saved[10], *down_terms);
    variable_list out(11);
    out[1] = grads[0];
    auto [dgate_up, hidden] = gradient_of_gate_up(dy, down_dlow, down, saved[11], *down_terms);
    const FactorGradients of_down =
        gradients_of_factors(dy, down_dlow, hidden, saved[9], *down_terms);
    hidden.reset();
    out[6] = of_down.a;
    out[7] = of_down.b;
    const at::Tensor up_dlow = gradient_of_low(dgate_up, saved[5], *up_terms);
    const FactorGradients of_up =
        gradients_of_factors(dgate_up, up_dlow, up_terms->input(saved[0]), saved[4], *up_terms);
    out[3] = of_up.a;
    out[4] = of_up.b;
    if (ctx->needs_input_grad(0)) {
      out[0] = gradient_of_x(dgate_up, up, up_dlow, *up_terms).view(grads[0].sizes());
    }
    return out;
  }
};

}  // namespace

at::Tensor adapted_rope_linear(const Input& input, const at::Tensor& weight, const Adapter& adapter,
                               const Dropout& dropout, int64_t packed_heads, int64_t heads_rotated,
                               const RopeInputs& rope_inputs, Kernels kernels) {
  check_adapter("adapted_rope_linear", input, weight, adapter, dropout);
  const auto& [dims, positions, table] = rope_inputs;
  const std::vector<int64_t> shape = check_rope_projection(
      "adapted_rope_linear", input.x, weight, packed_heads, heads_rotated, dims, positions, table);
  if (!has_fused_kernels(input.x, kernels)) {
    const at::Tensor packed =
        adapted_linear(input, weight, adapter, dropout, {}, kernels).view(shape);
    return reference::rope(packed, heads_rotated, dims, positions, table);
  }
  return AdaptedRope::apply(
      input.x, weight, adapter.a.tensor(), adapter.b.tensor(), input,
      c10::make_intrusive<AdapterTerms>(adapter, dropout, kernels, input),
      RopeOfHeads{packed_heads, heads_rotated, dims, positions.contiguous(), table.contiguous()});
}

at::Tensor adapted_swiglu_feed_forward(const Input& input, const AdaptedWeight& up,
                                       const AdaptedWeight& down, const at::Tensor& residual,
                                       Kernels kernels) {
  const at::Tensor& x = input.x;
  check_feed_forward("adapted_swiglu_feed_forward", x, up.weight, down.weight, residual);
  check_adapter("adapted_swiglu_feed_forward: up", input, up.weight, up.adapter, up.dropout);
  TORCH_CHECK(down.adapter.defined() && !down.weight.requires_grad(),
              "adapted_swiglu_feed_forward: down needs an adapter and a constant weight");
  if (!has_fused_kernels(x, kernels)) {
    const at::Tensor hidden =
        reference::swiglu(adapted_linear(input, up.weight, up.adapter, up.dropout, {}, kernels));
    return adapted_linear(hidden, down.weight, down.adapter, down.dropout, residual, kernels);
  }
  return AdaptedSwiglu::apply(
      x, residual, up.weight, up.adapter.a.tensor(), up.adapter.b.tensor(), down.weight,
      down.adapter.a.tensor(), down.adapter.b.tensor(), input,
      c10::make_intrusive<AdapterTerms>(up.adapter, up.dropout, kernels, input),
      c10::make_intrusive<AdapterTerms>(down.adapter, down.dropout, kernels));
}

}  // namespace stablemask::ops
