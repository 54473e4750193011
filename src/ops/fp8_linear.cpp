#include "stablemask/ops/fp8_linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <optional>
#include <utility>

#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/functional_grad.h"
#include "src/ops/products.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops::fp8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr Sums kForwardSums = Sums::kFast, kGradientSums = Sums::kPromoted;

/// A projection in an autograd function: its fp8 state, and the mark of its weight's gradient.
struct Work : torch::CustomClassHolder {
  Work(ProjectionPtr fp8_in, Mark mark_in) : fp8(std::move(fp8_in)), mark(std::move(mark_in)) {}
  ProjectionPtr fp8;
  Mark mark;
};
using WorkPtr = c10::intrusive_ptr<Work>;

WorkPtr work_of(const Fp8Weight& w) { return c10::make_intrusive<Work>(w.fp8, w.weight.mark()); }

void save_work(AutogradContext* ctx, const char* key, const WorkPtr& work) {
  ctx->saved_data[key] = c10::IValue::make_capsule(work);
}
WorkPtr load_work(AutogradContext* ctx, const char* key) {
  return c10::static_intrusive_pointer_cast<Work>(ctx->saved_data[key].toCapsule());
}

/// Calls `fill`, which quantises with `slot`; just in time a second time with the scale that the
/// first call's maximum asks for.
template <typename Fill>
void scaled(const Projection& fp8, const Slot& slot, const Fill& fill) {
  fill();
  if (!fp8.just_in_time) return;
  fit_scale_(slot);
  fill();
}

/// x [rows, C] as an operand of fp8's products.
Matrix quantized(const at::Tensor& x, const Projection& fp8, const Slot& slot, Parts parts,
                 Kernels kernels) {
  Matrix out = make_matrix(x.size(0), x.size(1), slot, parts);
  scaled(fp8, slot, [&] { quantize(x, slot, out, kernels); });
  return out;
}

const Matrix& weight_copy(Projection& fp8, const at::Tensor& weight, Kernels kernels) {
  if (!std::exchange(fp8.copied, true)) {
    scaled(fp8, fp8.weight, [&] { quantize(weight, fp8.weight, fp8.copy, kernels); });
  }
  return fp8.copy;
}

/// x · weightᵀ (+ residual), [rows, out].
at::Tensor forward_product(const Matrix& x, Projection& fp8, const at::Tensor& weight,
                           const at::Tensor& residual, const at::TensorOptions& options,
                           Kernels kernels) {
  const Matrix& copy = weight_copy(fp8, weight, kernels);
  at::Tensor out = at::empty({x.values.size(0), weight.size(0)}, options);
  const bool adds = residual.defined();
  product(out, x.direct(), copy.direct(), adds ? 1.0 : 0.0, adds ? rows(residual) : residual,
          kForwardSums, kernels);
  return out;
}

at::Tensor input_gradient(const Matrix& dy, const Projection& fp8, const at::TensorOptions& options,
                          Kernels kernels) {
  at::Tensor dx = at::empty({dy.values.size(0), fp8.copy.values.size(1)}, options);
  product(dx, dy.direct(), fp8.copy.turned(), 0.0, {}, kGradientSums, kernels);
  return dx;
}

/// Accumulated into weight.grad() if it is defined, else returned. `x_twin`: of the input.
at::Tensor weight_gradient(const at::Tensor& weight, const Work& work, const Matrix& dy,
                           const at::Tensor& x_twin, Kernels kernels) {
  const Operand x{x_twin, work.fp8->input.inverse};
  at::Tensor grad = existing_grad(weight);
  if (grad.defined() && grad.scalar_type() == at::kFloat) {
    product(grad, dy.turned(), x, gradient_beta(work.mark), {}, kGradientSums, kernels);
    return {};
  }
  at::Tensor dw = at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
  product(dw, dy.turned(), x, 0.0, {}, kGradientSums, kernels);
  if (!grad.defined()) return dw.to(weight.scalar_type());
  if (take_stale(work.mark)) grad.zero_();
  grad.add_(dw);
  return {};
}

Parts parts_of(bool values, bool twin) {
  if (values) return twin ? Parts::kBoth : Parts::kValues;
  return Parts::kTwin;
}

struct Gradients {
  at::Tensor dx, dw;
};

/// `fill` quantises the outputs' gradient [rows, out] with the given slot. Undefined where none is
/// required. Inputs 0 and 1 of the function are x and weight.
template <typename Fill>
Gradients projection_gradients(AutogradContext* ctx, const Work& work, int64_t rows,
                               const at::TensorOptions& options, const at::Tensor& x_twin,
                               const at::Tensor& weight, Kernels kernels, const Fill& fill) {
  const bool wants_dx = ctx->needs_input_grad(0), wants_dw = ctx->needs_input_grad(1);
  if (!wants_dx && !wants_dw) return {};
  const Projection& fp8 = *work.fp8;
  Matrix dy = make_matrix(rows, weight.size(0), fp8.gradient, parts_of(wants_dx, wants_dw));
  scaled(fp8, fp8.gradient, [&] { fill(fp8.gradient, dy); });
  Gradients grads;
  if (wants_dx) grads.dx = input_gradient(dy, fp8, options, kernels);
  if (wants_dw) grads.dw = weight_gradient(weight, work, dy, x_twin, kernels);
  return grads;
}

struct Fp8Linear : torch::autograd::Function<Fp8Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& residual, const WorkPtr& work,
                            Parts parts, Kernels kernels) {
    Projection& fp8 = *work->fp8;
    const Matrix in = quantized(rows(x), fp8, fp8.input, parts, kernels);
    ctx->save_for_backward({in.twin, weight});
    ctx->saved_data["shape"] = x.sizes();
    ctx->saved_data["adds"] = residual.has_value();
    save_work(ctx, "work", work);
    save_kernels(ctx, kernels);
    return forward_product(in, fp8, weight, residual.value_or(at::Tensor()), x.options(), kernels)
        .view(with_last(x, weight.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor dy = rows(grads[0]);
    const Kernels kernels = load_kernels(ctx);
    const Gradients found = projection_gradients(
        ctx, *load_work(ctx, "work"), dy.size(0), dy.options(), saved[0], saved[1], kernels,
        [&](const Slot& slot, Matrix& out) { quantize(dy, slot, out, kernels); });
    variable_list out(6);
    if (found.dx.defined()) out[0] = found.dx.view(ctx->saved_data["shape"].toIntVector());
    out[1] = found.dw;
    if (ctx->saved_data["adds"].toBool() && ctx->needs_input_grad(2)) out[2] = grads[0];
    return out;
  }
};

struct Fp8RopeLinear : torch::autograd::Function<Fp8RopeLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const WorkPtr& work, Parts parts, int64_t packed_heads, int64_t heads,
                            int64_t dims, const at::Tensor& positions, const at::Tensor& table) {
    Projection& fp8 = *work->fp8;
    const Matrix in = quantized(rows(x), fp8, fp8.input, parts, Kernels::kFused);
    ctx->saved_data["heads"] = heads;
    ctx->saved_data["dims"] = dims;
    ctx->save_for_backward({in.twin, weight, positions, table});
    save_work(ctx, "work", work);
    const Matrix& copy = weight_copy(fp8, weight, Kernels::kFused);
    at::Tensor packed =
        at::empty({x.size(0), x.size(1), packed_heads, weight.size(0) / packed_heads}, x.options());
    product_rope(packed, in.direct(), copy.direct(), heads, {dims, positions, table}, kForwardSums);
    return packed;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& weight = saved[1];
    const at::Tensor dpacked = grads[0].contiguous();
    const int64_t heads = ctx->saved_data["heads"].toInt();
    const RopeInputs rope{ctx->saved_data["dims"].toInt(), saved[2], saved[3]};
    const Gradients found = projection_gradients(
        ctx, *load_work(ctx, "work"), dpacked.size(0) * dpacked.size(1), dpacked.options(),
        saved[0], weight, Kernels::kFused, [&](const Slot& slot, Matrix& out) {
          quantize_rope_backward(dpacked, heads, rope, slot, out);
        });
    variable_list out(9);
    if (found.dx.defined()) out[0] = found.dx.view({grads[0].size(0), grads[0].size(1), -1});
    out[1] = found.dw;
    return out;
  }
};

struct Fp8FeedForward : torch::autograd::Function<Fp8FeedForward> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& up,
                            const at::Tensor& down, const at::Tensor& residual,
                            const WorkPtr& up_work, const WorkPtr& down_work, Parts up_parts,
                            Parts down_parts, Kernels kernels) {
    Projection &first = *up_work->fp8, &second = *down_work->fp8;
    const Matrix in = quantized(rows(x), first, first.input, up_parts, kernels);
    const Matrix& copy = weight_copy(first, up, kernels);
    at::Tensor gate_up = at::empty({in.values.size(0), up.size(0)}, x.options());
    Matrix hidden = make_matrix(gate_up.size(0), down.size(1), second.input, down_parts);
    scaled(second, second.input, [&] {
      product_swiglu(gate_up, in.direct(), copy.direct(), second.input, hidden, kForwardSums,
                     kernels);
    });
    ctx->save_for_backward({in.twin, up, down, gate_up, hidden.twin});
    save_work(ctx, "first", up_work);
    save_work(ctx, "second", down_work);
    save_kernels(ctx, kernels);
    return forward_product(hidden, second, down, residual, x.options(), kernels)
        .view(residual.sizes());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &up = saved[1], &down = saved[2], &gate_up = saved[3];
    const WorkPtr up_work = load_work(ctx, "first"), down_work = load_work(ctx, "second");
    const Projection &first = *up_work->fp8, &second = *down_work->fp8;
    const Kernels kernels = load_kernels(ctx);
    const bool wants_dx = ctx->needs_input_grad(0), wants_dup = ctx->needs_input_grad(1),
               wants_ddown = ctx->needs_input_grad(2), goes_on = wants_dx || wants_dup;
    variable_list out(9);
    if (ctx->needs_input_grad(3)) out[3] = grads[0];
    if (!goes_on && !wants_ddown) return out;
    const Matrix dy =
        quantized(rows(grads[0]), second, second.gradient, parts_of(goes_on, wants_ddown), kernels);
    if (wants_ddown) out[2] = weight_gradient(down, *down_work, dy, saved[4], kernels);
    if (!goes_on) return out;
    const at::Tensor dhidden = input_gradient(dy, second, gate_up.options(), kernels);
    Matrix dgate_up = make_matrix(gate_up.size(0), gate_up.size(1), first.gradient,
                                  parts_of(wants_dx, wants_dup));
    scaled(first, first.gradient,
           [&] { quantize_swiglu_backward(dhidden, gate_up, first.gradient, dgate_up, kernels); });
    if (wants_dx) {
      out[0] = input_gradient(dgate_up, first, gate_up.options(), kernels).view(grads[0].sizes());
    }
    if (wants_dup) out[1] = weight_gradient(up, *up_work, dgate_up, saved[0], kernels);
    return out;
  }
};

/// Of an input: the twin is for the weight's gradient.
Parts input_parts(const at::Tensor& weight) {
  return parts_of(true, at::GradMode::is_enabled() && weight.requires_grad());
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const Fp8Weight& w, const at::Tensor& residual,
                  Kernels kernels) {
  const at::Tensor& weight = w.weight.tensor();
  check_projection("fp8::linear", x, weight);
  if (residual.defined()) {
    check_alike("fp8::linear", "x", x, "residual", residual);
    TORCH_CHECK(residual.sizes() == at::IntArrayRef(with_last(x, weight.size(0))),
                "fp8::linear: need x [..., in], weight [out, in] and residual [..., out], got ",
                x.sizes(), ", ", weight.sizes(), " and ", residual.sizes());
  }
  const auto addend = residual.defined() ? std::optional(residual) : std::nullopt;
  return Fp8Linear::apply(x, weight, addend, work_of(w), input_parts(weight), kernels);
}

at::Tensor rope_linear(const at::Tensor& x, const Fp8Weight& w, int64_t packed_heads,
                       int64_t heads_rotated, const RopeInputs& rope_inputs, Kernels kernels) {
  const at::Tensor& weight = w.weight.tensor();
  const auto& [dims, positions, table] = rope_inputs;
  check_projection("fp8::rope_linear", x, weight);
  TORCH_CHECK(x.dim() == 3 && packed_heads > 0 && weight.size(0) % packed_heads == 0,
              "fp8::rope_linear: x ", x.sizes(), " does not fit weight ", weight.sizes(), " of ",
              packed_heads, " heads");
  const int64_t head_dim = weight.size(0) / packed_heads;
  check_rope(x, {x.size(0), x.size(1), packed_heads, head_dim}, heads_rotated, dims, positions,
             table);
  if (!has_fused_kernels(x, kernels)) {
    const at::Tensor packed =
        linear(x, w, {}, kernels).view({x.size(0), x.size(1), packed_heads, head_dim});
    return reference::rope(packed, heads_rotated, dims, positions, table);
  }
  return Fp8RopeLinear::apply(x, weight, work_of(w), input_parts(weight), packed_heads,
                              heads_rotated, dims, positions.contiguous(), table.contiguous());
}

at::Tensor swiglu_feed_forward(const at::Tensor& x, const Fp8Weight& up_weight,
                               const Fp8Weight& down_weight, const at::Tensor& residual,
                               Kernels kernels) {
  const at::Tensor &up = up_weight.weight.tensor(), &down = down_weight.weight.tensor();
  check_feed_forward("fp8::swiglu_feed_forward", x, up, down, residual);
  return Fp8FeedForward::apply(x, up, down, residual, work_of(up_weight), work_of(down_weight),
                               input_parts(up), input_parts(down), kernels);
}

}  // namespace stablemask::ops::fp8
