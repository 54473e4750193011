#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>

#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/epilogues.h"
#include "src/ops/few_rows.h"
#include "src/ops/functional_grad.h"
#include "src/ops/products.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

/// Ops of functional.h with large weights: projections, feed-forward layer, embedding and
/// language-model head.
namespace stablemask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// x · weightᵀ. On a GPU rows begin on 16-byte boundaries, which fast GEMMs need, and with which
/// the order of a row's sums does not depend on its number.
at::Tensor logits_of(const at::Tensor& x, const at::Tensor& weight, Kernels kernels) {
  const int64_t columns = weight.size(0), pack = x.is_cuda() ? 16 / x.element_size() : 1;
  at::Tensor out = at::empty({x.size(0), (columns + pack - 1) / pack * pack}, x.options());
  out = out.narrow(1, 0, columns);
  project(out, x, weight, kernels);
  return out;
}

constexpr const char* kMark = "mark";

/// The input of a product that its backward needs: none where the weight is frozen.
at::Tensor kept_for(const at::Tensor& weight, const at::Tensor& input) {
  return weight.requires_grad() ? input : at::Tensor();
}

/// Gradients of inputs 0 (x, as [rows, in]) and 1 (weight) of a projection for dy [rows, out];
/// undefined where none is required. x: kept_for(weight, x).
std::array<at::Tensor, 2> projection_grads(AutogradContext* ctx, const at::Tensor& dy,
                                           const at::Tensor& x, const at::Tensor& weight) {
  const Kernels kernels = load_kernels(ctx);
  std::array<at::Tensor, 2> grads;
  if (ctx->needs_input_grad(0)) {
    grads[0] = projected(dy, weight, kernels, /*plain=*/true);
  }
  if (ctx->needs_input_grad(1)) {
    grads[1] = weight_grad(weight, load_mark(ctx, kMark), dy, rows(x), kernels);
  }
  return grads;
}

/// dx [rows, in], if it is defined, with the leading dimensions of dy [..., out].
at::Tensor like_input(const at::Tensor& dx, const at::Tensor& dy) {
  return dx.defined() ? dx.view(with_last(dy, dx.size(1))) : dx;
}

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const Mark& mark, Kernels kernels) {
    ctx->save_for_backward({kept_for(weight, x), weight});
    save_mark(ctx, kMark, mark);
    save_kernels(ctx, kernels);
    return projected(rows(x), weight, kernels).view(with_last(x, weight.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto [dx, dw] = projection_grads(ctx, rows(grads[0]), saved[0], saved[1]);
    return {like_input(dx, grads[0]), dw, at::Tensor(), at::Tensor()};
  }
};

struct LinearAdd : torch::autograd::Function<LinearAdd> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& residual, const Mark& mark, Kernels kernels) {
    ctx->save_for_backward({kept_for(weight, x), weight});
    save_mark(ctx, kMark, mark);
    save_kernels(ctx, kernels);
    return projected_onto(rows(residual), rows(x), weight, kernels).view(residual.sizes());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto [dx, dw] = projection_grads(ctx, rows(grads[0]), saved[0], saved[1]);
    return {like_input(dx, grads[0]), dw, grads[0], at::Tensor(), at::Tensor()};
  }
};

struct RopeLinear : torch::autograd::Function<RopeLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const Mark& mark, const RopeOfHeads& rope, Kernels kernels) {
    save_rope(ctx, rope);
    ctx->save_for_backward({kept_for(weight, x), weight, rope.positions, rope.table});
    save_mark(ctx, kMark, mark);
    save_kernels(ctx, kernels);
    return rotated_product(x, weight, {}, rope,
                           [&](at::Tensor& out) { project(out, rows(x), weight, kernels); });
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor dy = unrotated(grads[0], load_rope(ctx, saved[2], saved[3]));
    const auto [dx, dw] = projection_grads(ctx, dy, saved[0], saved[1]);
    return {like_input(dx, grads[0].select(-1, 0)), dw, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct SwigluFeedForward : torch::autograd::Function<SwigluFeedForward> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& up,
                            const at::Tensor& down, const at::Tensor& residual, const Mark& up_mark,
                            const Mark& down_mark, Kernels kernels) {
    const at::Tensor in = rows(x);
    const auto [gate_up, hidden] =
        gated_product(in, up, {}, [&](at::Tensor& out) { project(out, in, up, kernels); });
    ctx->save_for_backward({kept_for(up, x), up, down, gate_up, kept_for(down, hidden)});
    save_mark(ctx, kMark, up_mark);
    save_mark(ctx, "down_mark", down_mark);
    save_kernels(ctx, kernels);
    return projected_onto(rows(residual), hidden, down, kernels).view(residual.sizes());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &up = saved[1], &down = saved[2], &gate_up = saved[3];
    const at::Tensor dy = rows(grads[0]);
    const Kernels kernels = load_kernels(ctx);
    variable_list out(7);
    if (ctx->needs_input_grad(2)) {
      out[2] = weight_grad(down, load_mark(ctx, "down_mark"), dy, saved[4], kernels);
    }
    out[3] = grads[0];
    if (!ctx->needs_input_grad(0) && !ctx->needs_input_grad(1)) return out;
    at::Tensor dgate_up = at::empty_like(gate_up);
    if (!project_swiglu_backward(dy, down, gate_up, dgate_up)) {
      const at::Tensor dhidden = projected(dy, down, kernels, /*plain=*/true);
      STABLEMASK_KERNEL(gate_up, swiglu_backward(dhidden, gate_up, dgate_up));
    }
    const auto [dx, dup] = projection_grads(ctx, dgate_up, x, up);
    out[0] = like_input(dx, grads[0]);
    out[1] = dup;
    return out;
  }
};

struct Embedding : torch::autograd::Function<Embedding> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& ids, const at::Tensor& weight,
                            const Mark& mark, Kernels kernels) {
    ctx->save_for_backward({ids, weight});
    save_mark(ctx, kMark, mark);
    save_kernels(ctx, kernels);
    std::vector<int64_t> shape = ids.sizes().vec();
    shape.push_back(weight.size(1));
    return weight.index_select(0, ids.reshape({-1})).view(shape);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    GradSink sink(saved[1], load_mark(ctx, kMark));
    const at::Tensor dy = grads[0].contiguous(), ids = saved[0].contiguous();
    if (load_kernels(ctx) == Kernels::kReference) {
      sink.buffer.index_add_(0, ids.view({-1}), rows(dy).to(sink.buffer.scalar_type()));
    } else {
      STABLEMASK_KERNEL(dy, embedding_backward(dy, ids, sink.buffer));
    }
    return {at::Tensor(), sink.returned(), at::Tensor(), at::Tensor()};
  }
};

/// Loss of each row, fp32 [rows]. Calls visit(first row, logits) after each chunk; with `grad` the
/// logits then hold their scaled gradient.
template <typename Visit>
at::Tensor chunked_losses(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                          const at::Tensor& scale, double z_loss, bool grad, Kernels kernels,
                          const Visit& visit) {
  const bool frozen_head = grad && !weight.requires_grad();
  const int64_t count = x.size(0),
                step = logit_chunk_rows(x.is_cuda(), weight.size(0), x.element_size(), frozen_head);
  at::Tensor losses = at::empty({count}, x.options().dtype(at::kFloat));
  for (int64_t first = 0; first < count; first += step) {
    const int64_t size = std::min(step, count - first);
    const at::Tensor in = x.narrow(0, first, size);
    at::Tensor logits = grad ? projected(in, weight, kernels) : logits_of(in, weight, kernels);
    at::Tensor part = losses.narrow(0, first, size);
    const at::Tensor target = targets.narrow(0, first, size);
    STABLEMASK_KERNEL(x, cross_entropy_(logits, target, scale, z_loss, grad, part));
    visit(first, logits);
  }
  return losses;
}

at::Tensor scaled_sum(const at::Tensor& losses, const at::Tensor& scale) {
  return (losses.sum(at::kDouble) * scale).to(losses.scalar_type());
}

/// Computes the gradients in the forward: each chunk of logits is overwritten by its gradient, so
/// the logits are never kept or recomputed.
struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& targets, const at::Tensor& scale, double z_loss,
                            HeadGradient head_gradient, const Mark& mark, Kernels kernels) {
    const bool wants_dx = x.requires_grad(), wants_dw = weight.requires_grad();
    const at::Tensor grad = existing_grad(weight);
    const bool in_forward =
        head_gradient == HeadGradient::kInForward && (!wants_dw || grad.defined());
    at::Tensor dx = wants_dx ? at::empty_like(x) : at::Tensor();
    at::Tensor dw;
    if (wants_dw) {
      dw = in_forward ? grad : at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
    }
    const double beta = in_forward && wants_dw ? gradient_beta(mark) : 0.0;
    if (wants_dw && x.size(0) == 0 && beta == 0.0) dw.zero_();
    const auto visit = [&](int64_t first, const at::Tensor& dlogits) {
      const int64_t size = dlogits.size(0);
      if (wants_dw) {
        accumulate_gemm(dw, dlogits, x.narrow(0, first, size), first == 0 ? beta : 1.0, kernels);
      }
      if (wants_dx) {
        at::Tensor part = dx.narrow(0, first, size);
        project(part, dlogits, weight, kernels, /*plain=*/true);
      }
    };
    const at::Tensor losses =
        chunked_losses(x, weight, targets, scale, z_loss, true, kernels, visit);
    ctx->saved_data["in_forward"] = in_forward;
    save_mark(ctx, kMark, mark);
    ctx->save_for_backward({weight, dx, in_forward ? at::Tensor() : dw});
    return scaled_sum(losses, scale);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &weight = saved[0], &dx = saved[1], &dw = saved[2];
    // Reading the incoming gradient would synchronise a GPU; on the CPU a 1 saves a pass.
    const bool one = ctx->saved_data["in_forward"].toBool() ||
                     (grads[0].is_cpu() && grads[0].item<float>() == 1.0f);
    variable_list out(8);
    if (dx.defined()) out[0] = one ? dx : dx * grads[0];
    if (!dw.defined()) return out;
    at::Tensor grad = existing_grad(weight);
    if (grad.defined()) {
      if (take_stale(load_mark(ctx, kMark))) grad.zero_();
      one ? grad.add_(dw) : grad.addcmul_(dw, grads[0]);
    } else {
      out[1] = (one ? dw : dw * grads[0]).to(weight.scalar_type());
    }
    return out;
  }
};

}  // namespace

void Weight::finish_gradient() const {
  if (take_stale(mark_)) tensor_.mutable_grad().zero_();
}

void accumulate_gemm(at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x, double beta,
                     Kernels kernels) {
  if (rounds_to_bf16(x, kernels) && dw.scalar_type() == at::kFloat) {
    cpu::bf16_product(dw, {dy, /*transposed=*/true}, {x}, /*adds=*/beta != 0.0);
  } else if (dw.scalar_type() == dy.scalar_type()) {
    dw.addmm_(dy.t(), x, beta);
#ifdef STABLEMASK_HAS_CUDA
  } else if (has_gemm(dy, kernels) && dw.scalar_type() == at::kFloat) {
    cuda::gemm(dw, {dy, /*transposed=*/true}, {x}, beta);
#endif
  } else {
    dw.addmm_(dy.t().to(dw.scalar_type()), x.to(dw.scalar_type()), beta);
  }
}

at::Tensor linear(const at::Tensor& x, const Weight& w, Kernels kernels) {
  const at::Tensor& weight = w.tensor();
  check_projection("linear", x, weight);
  const at::Tensor few = few_rows_linear(x, weight, kernels);
  if (few.defined()) return few;
  return Linear::apply(x, weight, w.mark(), kernels);
}

at::Tensor linear_add(const at::Tensor& x, const Weight& w, const at::Tensor& residual,
                      Kernels kernels) {
  const at::Tensor& weight = w.tensor();
  check_projection("linear_add", x, weight);
  check_alike("linear_add", "x", x, "residual", residual);
  TORCH_CHECK(residual.sizes() == at::IntArrayRef(with_last(x, weight.size(0))),
              "linear_add: need x [..., in], weight [out, in] and residual [..., out], got ",
              x.sizes(), ", ", weight.sizes(), " and ", residual.sizes());
  const at::Tensor few = few_rows_linear(x, weight, kernels, {residual, {}, 0, false});
  if (few.defined()) return few;
  return LinearAdd::apply(x, weight, residual, w.mark(), kernels);
}

at::Tensor swiglu_feed_forward(const at::Tensor& x, const Weight& up_weight,
                               const Weight& down_weight, const at::Tensor& residual,
                               Kernels kernels) {
  const at::Tensor &up = up_weight.tensor(), &down = down_weight.tensor();
  check_feed_forward("swiglu_feed_forward", x, up, down, residual);
  if (!has_fused_kernels(x, kernels)) {
    const at::Tensor hidden = reference::swiglu(ops::linear(x, up_weight, kernels));
    return linear_add(hidden, down_weight, residual, kernels);
  }
  const at::Tensor few = few_rows_linear(x, up, kernels, {{}, {}, 0, /*gated=*/true});
  if (few.defined()) return linear_add(few, down_weight, residual, kernels);
  return SwigluFeedForward::apply(x, up, down, residual, up_weight.mark(), down_weight.mark(),
                                  kernels);
}

at::Tensor rope_linear(const at::Tensor& x, const Weight& w, int64_t packed_heads,
                       int64_t heads_rotated, const RopeInputs& rope_inputs, Kernels kernels) {
  const at::Tensor& weight = w.tensor();
  check_projection("rope_linear", x, weight);
  const auto& [dims, positions, table] = rope_inputs;
  const std::vector<int64_t> shape = check_rope_projection("rope_linear", x, weight, packed_heads,
                                                           heads_rotated, dims, positions, table);
  if (!has_fused_kernels(x, kernels)) {
    const at::Tensor packed = ops::linear(x, w, kernels).view(shape);
    return reference::rope(packed, heads_rotated, dims, positions, table);
  }
  return RopeLinear::apply(
      x, weight, w.mark(),
      RopeOfHeads{packed_heads, heads_rotated, dims, positions.contiguous(), table.contiguous()},
      kernels);
}

at::Tensor embedding(const at::Tensor& ids, const Weight& w, Kernels kernels) {
  const at::Tensor& weight = w.tensor();
  check_float("ops::embedding", "weight", weight);
  check_device("ops::embedding", "weight", weight, "ids", ids);
  TORCH_CHECK(ids.scalar_type() == at::kLong && weight.dim() == 2 && weight.numel() > 0,
              "embedding: ids must be int64 and weight [V, C], V and C at least 1, got ",
              ids.toString(), " ", ids.sizes(), " and ", weight.sizes());
  return Embedding::apply(ids, weight, w.mark(), kernels);
}

at::Tensor linear_cross_entropy(const at::Tensor& x, const Weight& w, const at::Tensor& targets,
                                const at::Tensor& scale, double z_loss, HeadGradient head_gradient,
                                Kernels kernels) {
  const at::Tensor& weight = w.tensor();
  check_head("linear_cross_entropy", x, weight, targets, z_loss);
  TORCH_CHECK(scale.defined(), "linear_cross_entropy: scale is undefined");
  TORCH_CHECK(scale.dim() == 0 && scale.scalar_type() == at::kDouble &&
                  scale.device() == x.device() && !scale.requires_grad(),
              "linear_cross_entropy: scale must be fp64, 0-dim, on x's device and constant, got ",
              scale.toString(), " ", scale.sizes());
  if (!has_fused_kernels(x, kernels)) {
    const at::Tensor sum =
        reference::cross_entropy(ops::linear(x, w, kernels), targets, z_loss).sum();
    return sum * scale.to(sum.scalar_type());
  }
  const at::Tensor in = x.contiguous(), labels = targets.contiguous();
  const bool grad = at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad());
  if (grad) {
    return LinearCrossEntropy::apply(in, weight, labels, scale, z_loss, head_gradient, w.mark(),
                                     kernels);
  }
  const auto ignore = [](int64_t, const at::Tensor&) {};
  return scaled_sum(chunked_losses(in, weight, labels, scale, z_loss, false, kernels, ignore),
                    scale);
}

at::Tensor linear_cross_entropy(const at::Tensor& x, const Weight& weight,
                                const at::Tensor& targets, double scale, double z_loss) {
  const at::Tensor factor =
      at::full({}, scale, x.options().dtype(at::kDouble).requires_grad(false));
  return linear_cross_entropy(x, weight, targets, factor, z_loss);
}

at::Tensor linear_nll(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                      Kernels kernels) {
  check_head("linear_nll", x, weight, targets, 0.0);
  const at::NoGradGuard no_grad;
  if (!has_fused_kernels(x, kernels)) {
    return reference::cross_entropy(at::mm(x, weight.t()), targets).to(at::kFloat);
  }
  const auto ignore = [](int64_t, const at::Tensor&) {};
  return chunked_losses(x.contiguous(), weight, targets.contiguous(), at::Tensor(), 0.0, false,
                        kernels, ignore);
}

}  // namespace stablemask::ops
