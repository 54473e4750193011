#include "stablemask/ops/functional.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/functional_grad.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Normed {
  at::Tensor sum, y, rstd;
};

/// Fused RMSNorm of residual + x, or of x where `residual` is undefined; `sum` is then undefined.
Normed fused_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                  double eps) {
  const at::Tensor in = x.contiguous();
  Normed out{
      residual.defined() ? at::empty_like(in) : at::Tensor(), at::empty_like(in),
      at::empty({in.numel() / std::max<int64_t>(in.size(-1), 1)}, in.options().dtype(at::kFloat))};
  const at::Tensor base = residual.defined() ? residual.contiguous() : residual;
  STABLEMASK_KERNEL(x, rms_norm_forward(in, base, weight, eps, out.sum, out.y, out.rstd));
  return out;
}

/// Gradients of (x, weight); one of dy and dsum may be undefined.
std::array<at::Tensor, 2> fused_norm_backward(const at::Tensor& dy, const at::Tensor& dsum,
                                              const at::Tensor& x, const at::Tensor& weight,
                                              const at::Tensor& rstd) {
  if (!dy.defined()) return {dsum, at::Tensor()};
  GradSink sink(weight);
  at::Tensor dx = at::empty_like(x);
  const at::Tensor dsum_rows = dsum.defined() ? dsum.contiguous() : dsum;
  STABLEMASK_KERNEL(
      x, rms_norm_backward(dy.contiguous(), dsum_rows, x, weight, rstd, dx, sink.buffer));
  return {dx, sink.returned()};
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    const at::Tensor in = x.contiguous();
    const Normed normed = fused_norm(in, at::Tensor(), weight, eps);
    ctx->save_for_backward({in, weight, normed.rstd});
    return normed.y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto [dx, dw] = fused_norm_backward(grads[0], at::Tensor(), saved[0], saved[1], saved[2]);
    return {dx, dw, at::Tensor()};
  }
};

struct RmsNormBranch : torch::autograd::Function<RmsNormBranch> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                               double eps) {
    const Normed normed = fused_norm(x, at::Tensor(), weight, eps);
    ctx->save_for_backward({x, weight, normed.rstd});
    ctx->set_materialize_grads(false);
    return {x, normed.y};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    if (!grads[0].defined() && !grads[1].defined()) return variable_list(3);
    const auto [dx, dw] = fused_norm_backward(grads[1], grads[0], saved[0], saved[1], saved[2]);
    return {dx, dw, at::Tensor()};
  }
};

struct AddRmsNorm : torch::autograd::Function<AddRmsNorm> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& residual,
                               const at::Tensor& delta, const at::Tensor& weight, double eps) {
    const Normed normed = fused_norm(delta, residual, weight, eps);
    ctx->save_for_backward({normed.sum, weight, normed.rstd});
    ctx->set_materialize_grads(false);
    return {normed.sum, normed.y};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    if (!grads[0].defined() && !grads[1].defined()) return variable_list(4);
    const auto [dx, dw] = fused_norm_backward(grads[1], grads[0], saved[0], saved[1], saved[2]);
    return {dx, dx, dw, at::Tensor()};
  }
};

struct BiasRows : torch::autograd::Function<BiasRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& bias, at::IntArrayRef shape) {
    ctx->save_for_backward({bias});
    return bias.expand(shape);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    GradSink sink(ctx->get_saved_variables()[0]);
    const at::Tensor dy = grads[0].reshape({-1, grads[0].size(-1)});
    sink.buffer.add_(dy.sum(0, /*keepdim=*/false, sink.buffer.scalar_type()));
    return {sink.returned(), at::Tensor()};
  }
};

at::Tensor table_of(const at::Tensor& position, const at::Tensor& frequency, double magnitude) {
  const at::Tensor angle = position.unsqueeze(1) * frequency;
  return at::cat({angle.cos(), angle.sin()}, 1).mul_(magnitude).to(at::kFloat);
}

struct Swiglu : torch::autograd::Function<Swiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_up) {
    const at::Tensor in = gate_up.contiguous();
    std::vector<int64_t> shape = in.sizes().vec();
    shape.back() /= 2;
    at::Tensor out = at::empty(shape, in.options());
    STABLEMASK_KERNEL(in, swiglu_forward(in, out));
    ctx->save_for_backward({in});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const at::Tensor gate_up = ctx->get_saved_variables()[0];
    at::Tensor dgate_up = at::empty_like(gate_up);
    STABLEMASK_KERNEL(gate_up, swiglu_backward(grads[0].contiguous(), gate_up, dgate_up));
    return {dgate_up};
  }
};

struct Rope : torch::autograd::Function<Rope> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& packed, int64_t heads,
                            int64_t dims, const at::Tensor& positions, const at::Tensor& table) {
    ctx->saved_data["heads"] = heads;
    ctx->saved_data["dims"] = dims;
    ctx->save_for_backward({positions, table});
    at::Tensor out = packed.clone(at::MemoryFormat::Contiguous);
    STABLEMASK_KERNEL(out, rope_(out, heads, dims, positions, table, /*inverse=*/false));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t heads = ctx->saved_data["heads"].toInt(), dims = ctx->saved_data["dims"].toInt();
    at::Tensor grad = writable(grads[0]);
    STABLEMASK_KERNEL(grad, rope_(grad, heads, dims, saved[0], saved[1], /*inverse=*/true));
    return {grad, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

/// Forward: views. Backward: writes the three gradients into one packed tensor; autograd's slices
/// would pad each with zeros and add them.
struct SplitHeads : torch::autograd::Function<SplitHeads> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& packed, int64_t heads,
                               int64_t kv_heads) {
    ctx->saved_data["shape"] = packed.sizes();
    return {packed.narrow(2, 0, heads), packed.narrow(2, heads, kv_heads),
            packed.narrow(2, heads + kv_heads, kv_heads)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const std::vector<int64_t> shape = ctx->saved_data["shape"].toIntVector();
    const at::Tensor packed = at::empty(shape, grads[0].options());
    int64_t head = 0;
    for (const at::Tensor& grad : grads) {
      packed.narrow(2, head, grad.size(2)).copy_(grad);
      head += grad.size(2);
    }
    return {packed, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, Kernels kernels) {
  check_norm("rms_norm", x, eps, {weight});
  if (!has_fused_norm(x, weight, kernels)) return reference::rms_norm(x, weight, eps);
  return RmsNorm::apply(x, weight, eps);
}

std::tuple<at::Tensor, at::Tensor> rms_norm_branch(const at::Tensor& x, const at::Tensor& weight,
                                                   double eps, Kernels kernels) {
  check_norm("rms_norm_branch", x, eps, {weight});
  if (!has_fused_norm(x, weight, kernels) || !x.is_contiguous()) {
    return {x, reference::rms_norm(x, weight, eps)};
  }
  variable_list out = RmsNormBranch::apply(x, weight, eps);
  return {std::move(out[0]), std::move(out[1])};
}

std::tuple<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& delta,
                                                const at::Tensor& weight, double eps,
                                                Kernels kernels) {
  check_norm("add_rms_norm", delta, eps, {weight});
  check_float("add_rms_norm", "residual", residual);
  check_device("add_rms_norm", "delta", delta, "residual", residual);
  TORCH_CHECK(residual.sizes() == delta.sizes(), "add_rms_norm: residual ", residual.sizes(),
              " and delta ", delta.sizes(), " differ");
  const bool one_type = residual.scalar_type() == delta.scalar_type();
  if (!one_type || !has_fused_norm(delta, weight, kernels)) {
    return reference::add_rms_norm(residual, delta, weight, eps);
  }
  variable_list out = AddRmsNorm::apply(residual, delta, weight, eps);
  return {std::move(out[0]), std::move(out[1])};
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps) {
  check_norm("layer_norm", x, eps, {weight, bias});
  const auto type = x.scalar_type();
  // LibTorch's CPU operator would sum the gradients of weight and bias in bf16.
  if (x.is_cpu() && type == at::kBFloat16) return reference::layer_norm(x, weight, bias, eps);
  return at::layer_norm(x, {x.size(-1)}, weight.to(type), bias.to(type), eps);
}

at::Tensor swiglu(const at::Tensor& gate_up, Kernels kernels) {
  check_swiglu(gate_up);
  return has_fused_kernels(gate_up, kernels) ? Swiglu::apply(gate_up) : reference::swiglu(gate_up);
}

at::Tensor gelu(const at::Tensor& x, Gelu form) {
  check_float("gelu", "x", x);
  return at::gelu(x, form == Gelu::kTanh ? "tanh" : "none");
}

at::Tensor bias_rows(const at::Tensor& bias, at::IntArrayRef shape) {
  check_float("bias_rows", "bias", bias);
  TORCH_CHECK(bias.dim() == 1 && !shape.empty() && shape.back() == bias.size(0),
              "bias_rows: need bias [C] and a shape [..., C], got ", bias.sizes(), " and ", shape);
  return BiasRows::apply(bias, shape);
}

at::Tensor rope(const at::Tensor& packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& cos_sin, Kernels kernels) {
  check_rope(packed, packed.sizes(), heads_rotated, dims, positions, cos_sin);
  if (!has_fused_kernels(packed, kernels)) {
    return reference::rope(packed, heads_rotated, dims, positions, cos_sin);
  }
  return Rope::apply(packed, heads_rotated, dims, positions.contiguous(), cos_sin.contiguous());
}

at::Tensor rope_frequencies(int64_t dims, double theta) {
  TORCH_CHECK(dims > 0 && dims % 2 == 0, "rope_frequencies: dims must be even and at least 2, got ",
              dims);
  TORCH_CHECK(theta > 0 && std::isfinite(theta), "rope_frequencies: theta must be positive, got ",
              theta);
  const at::Tensor m = at::arange(dims / 2, at::kDouble);
  return at::exp(m * (-2.0 * std::log(theta) / static_cast<double>(dims)));
}

at::Tensor rope_table(int64_t length, int64_t dims, double theta, double scaling, int64_t first) {
  TORCH_CHECK(length >= 0 && first >= 0, "rope_table: length and first must be at least 0, got ",
              length, " and ", first);
  TORCH_CHECK(theta > 0 && std::isfinite(theta) && scaling > 0 && std::isfinite(scaling),
              "rope_table: theta and scaling must be positive, got ", theta, " and ", scaling);
  const at::Tensor position = at::arange(first, first + length, at::kDouble) / scaling;
  return table_of(position, rope_frequencies(dims, theta), 1.0);
}

at::Tensor rope_table(int64_t length, const at::Tensor& frequencies, double magnitude) {
  TORCH_CHECK(length >= 0, "rope_table: length must be at least 0, got ", length);
  TORCH_CHECK(
      frequencies.scalar_type() == at::kDouble && frequencies.dim() == 1 && frequencies.numel() > 0,
      "rope_table: frequencies must be fp64 [dims/2], got ", frequencies.toString(), " ",
      frequencies.sizes());
  TORCH_CHECK(magnitude > 0 && std::isfinite(magnitude),
              "rope_table: magnitude must be positive, got ", magnitude);
  return table_of(at::arange(length, at::kDouble), frequencies, magnitude);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> split_heads(const at::Tensor& packed, int64_t heads,
                                                           int64_t kv_heads) {
  TORCH_CHECK(heads > 0 && kv_heads > 0, "split_heads: heads and kv_heads must be at least 1, got ",
              heads, " and ", kv_heads);
  TORCH_CHECK(packed.dim() == 4 && packed.size(2) == heads + 2 * kv_heads,
              "split_heads: packed must be [B, T, ", heads + 2 * kv_heads, ", D], got ",
              packed.sizes());
  variable_list out = SplitHeads::apply(packed, heads, kv_heads);
  return {std::move(out[0]), std::move(out[1]), std::move(out[2])};
}

int64_t logit_chunk_rows(bool on_gpu, int64_t vocab, int64_t element_bytes, bool frozen_head) {
  TORCH_CHECK(vocab > 0 && element_bytes > 0,
              "logit_chunk_rows: vocab and element_bytes must be at least 1, got ", vocab, " and ",
              element_bytes);
  // CPU: the logits stay in the caches between the GEMMs and the loss. GPU: bounds the memory,
  // where no chunk adds to the weight's gradient more tightly. A power of two, so that usual batch
  // sizes divide into equal chunks.
  const int64_t on_gpu_bytes = int64_t{1} << (frozen_head ? 28 : 30);
  const int64_t bytes = on_gpu ? on_gpu_bytes : int64_t{1} << 24;
  int64_t count = 64;
  while (2 * count * vocab * element_bytes <= bytes) count *= 2;
  return count;
}

}  // namespace stablemask::ops
