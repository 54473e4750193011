#include "stablemask/ops/attention.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "src/ops/attention_flash.h"
#include "src/ops/attention_parts.h"
#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "stablemask/base/error.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Arguments of a flash kernel and of the correction of its result.
struct KernelArgs {
  flash::Call call;
  at::Tensor row_bias;  ///< the kernel's lse minus the true lse, [H,T] or [1,H,T]
};

void save(AutogradContext* ctx, const KernelArgs& args) {
  ctx->saved_data["kernel"] = static_cast<int64_t>(args.call.kernel);
  ctx->saved_data["scale"] = args.call.scale;
  ctx->saved_data["causal"] = args.call.causal;
  ctx->saved_data["mask"] = args.call.mask;
  ctx->saved_data["window"] = args.call.window;
  ctx->saved_data["boundaries"] = args.call.boundaries;
  ctx->saved_data["longest"] = args.call.longest;
  ctx->saved_data["row_bias"] = args.row_bias;
}

KernelArgs load(AutogradContext* ctx) {
  KernelArgs args;
  args.call.kernel = static_cast<flash::Kernel>(ctx->saved_data["kernel"].toInt());
  args.call.scale = ctx->saved_data["scale"].toDouble();
  args.call.causal = ctx->saved_data["causal"].toBool();
  args.call.mask = ctx->saved_data["mask"].toTensor();
  args.call.window = ctx->saved_data["window"].toInt();
  args.call.boundaries = ctx->saved_data["boundaries"].toTensor();
  args.call.longest = ctx->saved_data["longest"].toInt();
  args.row_bias = ctx->saved_data["row_bias"].toTensor();
  return args;
}

/// A stock flash kernel followed by the correction of its output and log-sum-exp by the pseudo
/// mass.
flash::Result corrected_forward(const KernelArgs& args, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, const at::Tensor& log_mass) {
  flash::Result result = flash::forward(args.call, q, k, v);
  if (log_mass.defined()) {
    if (args.row_bias.defined()) result.lse.sub_(args.row_bias);
    STABLEMASK_KERNEL(q, stable_mask_correct_(result.out, result.lse, log_mass));
    if (args.row_bias.defined()) result.lse.add_(args.row_bias);
  }
  return result;
}

/// ∂L/∂log S_i = −ρ_i·D_i, ρ_i = exp(log S_i − lse'_i), D = Σ dout·out', from the corrected result.
at::Tensor mass_gradient(const KernelArgs& args, const at::Tensor& dout, const at::Tensor& log_mass,
                         const flash::Result& result) {
  const at::Tensor lse = args.row_bias.defined() ? result.lse - args.row_bias : result.lse;
  return STABLEMASK_KERNEL(dout, stable_mask_mass_gradient(dout, result.out, lse, log_mass));
}

/// The stock backward, called with the corrected pair, computes exp(a − lse') and D, which gives
/// exactly StableMask's gradients of q, k, v.
struct CorrectedFlash : torch::autograd::Function<CorrectedFlash> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const std::optional<at::Tensor>& pseudo_mass,
                            const KernelArgs& args) {
    const at::Tensor log_mass = pseudo_mass.value_or(at::Tensor());
    const flash::Result result = corrected_forward(args, q, k, v, log_mass);
    save(ctx, args);
    ctx->save_for_backward({q, k, v, log_mass, result.out, result.lse, result.seed, result.offset});
    return result.out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const KernelArgs args = load(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& log_mass = saved[3];
    const flash::Result result{saved[4], saved[5], saved[6], saved[7]};
    auto [dq, dk, dv] = flash::backward(args.call, grads[0], saved[0], saved[1], saved[2], result);
    at::Tensor dlog_mass;
    if (log_mass.defined() && ctx->needs_input_grad(3)) {
      dlog_mass = mass_gradient(args, grads[0], log_mass, result);
    }
    return {dq, dk, dv, dlog_mass, at::Tensor()};
  }
};

at::TensorOptions index_options(const at::Tensor& like) {
  return at::TensorOptions().dtype(at::kLong).device(like.device());
}

/// Position of each query row in its document, int64 [T] or [B,T].
at::Tensor row_positions(const AttentionOptions& options, int64_t rows, const at::Tensor& like) {
  const at::Tensor columns =
      at::arange(options.query_offset, options.query_offset + rows, index_options(like));
  return options.document_start.defined() ? columns - options.document_start : columns;
}

/// [B,S,Hkv,D] → [B,S,H,D], for kernels without grouped heads.
at::Tensor expand_heads(const at::Tensor& x, int64_t heads) {
  return x.size(2) == heads ? x : x.repeat_interleave(heads / x.size(2), 2);
}

struct Inputs {
  at::Tensor q, k, v, log_mass;
  int64_t batch, rows, keys, heads, dims;
};

/// ATen's CPU kernel takes either a causal flag or an additive mask. With as many keys as queries
/// (training) it takes the flag, and ALiBi as the column bias slope·j, which makes the lse too
/// large by slope·i (row_bias). All other cases take an additive mask.
KernelArgs prepare_cpu(const Inputs& in, const AttentionOptions& options) {
  KernelArgs args;
  const auto math = in.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor slopes = options.alibi_slopes.defined()
                                ? options.alibi_slopes.to(math).view({1, -1, 1, 1})
                                : at::Tensor();
  const at::Tensor j = at::arange(in.keys, index_options(in.q)).view({1, 1, 1, -1});
  const bool needs_mask = options.window > 0 || options.document_start.defined();
  if (in.rows == in.keys && !needs_mask) {
    if (slopes.defined()) {
      args.call.mask = slopes * j.to(math);
      args.row_bias = args.call.mask.view({in.heads, in.keys});
    }
    return args;
  }
  args.call.causal = false;
  if (in.rows == 1 && !needs_mask && !slopes.defined()) return args;
  const at::Tensor i = j.slice(3, in.keys - in.rows).view({1, 1, -1, 1});
  at::Tensor visible = j <= i;
  if (options.window > 0) visible = at::logical_and(visible, j > i - options.window);
  if (options.document_start.defined()) {
    visible = at::logical_and(visible, j >= options.document_start.view({in.batch, 1, in.rows, 1}));
  }
  const auto like = in.q.options().dtype(math);
  at::Tensor bias = slopes.defined() ? slopes * (j - i).to(math) : at::zeros({}, like);
  args.call.mask =
      at::where(visible, bias, at::full({}, -std::numeric_limits<double>::infinity(), like));
  return args;
}

/// ALiBi as eight extra head dimensions, whose dot product is the bias. With j = 128·hi + lo, both
/// exact in bf16, and slope/scale = m1 + m2, each rounded to bf16, (128·m1, 128·m2, m1, m2)·(hi,
/// hi, lo, lo) is slope·j to fp32 accuracy. The remaining −slope·i is constant in a row and only
/// shifts the lse (row_bias).
void append_alibi(Inputs& in, const AttentionOptions& options, bool pad_values, KernelArgs& args) {
  const auto bf16 = in.q.scalar_type();
  const at::Tensor wanted = options.alibi_slopes.to(at::kFloat) / args.call.scale;
  const at::Tensor m1 = wanted.to(bf16), m2 = (wanted - m1.to(at::kFloat)).to(bf16);
  const at::Tensor none = at::zeros_like(m1);
  const at::Tensor q_extra =
      at::stack({m1 * 128, m2 * 128, m1, m2, none, none, none, none}, 1).view({1, 1, -1, 8});
  AttentionOptions key_options = options;
  key_options.query_offset = 0;
  const at::Tensor j = row_positions(key_options, in.keys, in.q).reshape({-1, in.keys});
  const at::Tensor hi = at::floor_divide(j, 128).to(bf16), lo = at::remainder(j, 128).to(bf16);
  const at::Tensor zero = at::zeros_like(hi);
  const at::Tensor k_extra = at::stack({hi, hi, lo, lo, zero, zero, zero, zero}, 2).unsqueeze(2);
  const int64_t kv_heads = in.k.size(2);
  in.q = at::cat({in.q, q_extra.expand({in.batch, in.rows, in.heads, 8})}, 3);
  in.k = at::cat({in.k, k_extra.expand({in.batch, in.keys, kv_heads, 8})}, 3);
  if (pad_values) in.v = at::constant_pad_nd(in.v, {0, 8});
  const at::Tensor i = row_positions(options, in.rows, in.q).to(at::kFloat);
  const at::Tensor slopes = options.alibi_slopes.to(at::kFloat);
  args.row_bias =
      i.dim() == 1 ? slopes.view({-1, 1}) * i : slopes.view({1, -1, 1}) * i.unsqueeze(1);
}

/// Packs the batch into one row of variable-length sequences, one per document.
void pack_documents(Inputs& in, const AttentionOptions& options, KernelArgs& args) {
  const int64_t total = in.batch * in.rows;
  const at::Tensor columns = at::arange(in.rows, index_options(in.q));
  const at::Tensor starts = (options.document_start == columns).reshape({-1}).nonzero().view({-1});
  args.call.boundaries = at::cat({starts, at::full({1}, total, index_options(in.q))}).to(at::kInt);
  args.call.longest = in.rows;
  for (at::Tensor* x : {&in.q, &in.k, &in.v}) {
    *x = x->reshape({1, total, x->size(2), x->size(3)});
  }
  for (at::Tensor* x : {&in.log_mass, &args.row_bias}) {
    if (x->defined()) *x = x->permute({1, 0, 2}).reshape({1, in.heads, total});
  }
}

KernelArgs prepare_cuda(Inputs& in, const AttentionOptions& options, double scale) {
  KernelArgs args;
  args.call.scale = scale;
  const bool documents = options.document_start.defined();
  const int64_t dims = in.dims + (options.alibi_slopes.defined() ? 8 : 0);
  const bool square = in.rows == in.keys && in.rows > 1 && !documents && options.window == 0;
  const bool cudnn = square && dims <= 128 && !at::globalContext().deterministicAlgorithms();
  args.call.kernel = cudnn ? flash::Kernel::kCudnn : flash::Kernel::kFlash2;
  args.call.window = options.window;
  if (options.alibi_slopes.defined()) append_alibi(in, options, /*pad_values=*/!cudnn, args);
  if (cudnn) {
    in.k = expand_heads(in.k, in.heads);
    in.v = expand_heads(in.v, in.heads);
  }
  if (documents) pack_documents(in, options, args);
  return args;
}

/// Empty when a flash kernel can run, otherwise the reason why none can.
std::string flash_obstacle(const at::Tensor& q, const at::Tensor& k,
                           const AttentionOptions& options) {
  if (q.is_cpu()) return "";
  if (!q.is_cuda()) return "the device has no flash kernel";
  if (q.scalar_type() != at::kBFloat16) return "on CUDA it needs bf16";
  const int64_t dims = q.size(3) + (options.alibi_slopes.defined() ? 8 : 0);
  if (q.size(3) % 8 != 0 || dims > 256) {
    return "on CUDA head_dim must be a multiple of 8, at most 256 (248 with ALiBi)";
  }
  if (options.alibi_slopes.defined() && k.size(1) > 32768) {
    return "on CUDA with ALiBi the context must be at most 32768";
  }
  return "";
}

bool use_flash(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
  if (options.backend == AttentionBackend::kReference) return false;
  const std::string obstacle = flash_obstacle(q, k, options);
  if (options.backend == AttentionBackend::kFlash && !obstacle.empty()) {
    throw ConfigError("attention backend \"flash\" is not available for this model: " + obstacle +
                      "; use \"auto\" or \"reference\"");
  }
  const bool forced = options.backend == AttentionBackend::kFlash;
  return obstacle.empty() && (forced || q.scalar_type() != at::kDouble);
}

}  // namespace

at::Tensor row_log_mass(const AttentionOptions& options, int64_t length) {
  TORCH_CHECK(options.pseudo, "row_log_mass: no pseudo scores");
  TORCH_CHECK(length >= 0 && options.query_offset >= 0,
              "row_log_mass: length and query_offset must be at least 0, got ", length, " and ",
              options.query_offset);
  check_pseudo("row_log_mass", *options.pseudo);
  const PseudoScores& pseudo = *options.pseudo;
  if (!options.document_start.defined()) {
    return log_pseudo_mass(pseudo, length, options.query_offset).contiguous();
  }
  const at::Tensor& start = options.document_start;
  TORCH_CHECK(start.dim() == 2 && start.size(1) == length && start.scalar_type() == at::kLong,
              "row_log_mass: document_start must be int64 [B, ", length, "], got ",
              start.toString(), " ", start.sizes());
  check_device("row_log_mass", "gamma", pseudo.gamma, "document_start", start);
  const at::Tensor positions = row_positions(options, length, pseudo.gamma);
  return log_pseudo_mass(pseudo, positions, length).permute({1, 0, 2}).contiguous();
}

namespace {

/// A checked call of `attention` that runs on a flash kernel.
struct FlashCall {
  Inputs in;
  KernelArgs args;

  std::optional<at::Tensor> log_mass() const {
    return in.log_mass.defined() ? std::optional<at::Tensor>(in.log_mass) : std::nullopt;
  }
  /// A tensor of the kernel's layout as [B, rows, heads, D], without ALiBi's extra dimensions.
  at::Tensor unpacked(const at::Tensor& x, int64_t rows) const {
    const at::Tensor shaped = x.reshape({in.batch, rows, x.size(2), x.size(3)});
    return shaped.size(3) == in.dims ? shaped : shaped.narrow(3, 0, in.dims);
  }
  at::Tensor output(const at::Tensor& out) const { return unpacked(out, in.rows); }
  /// The kernel's layout of [B,T,H,D], which is that of its output.
  at::Tensor packed(const at::Tensor& x) const {
    const at::Tensor shaped = x.reshape({in.q.size(0), in.q.size(1), in.heads, in.dims});
    const int64_t extra = in.v.size(3) - in.dims;
    return extra == 0 ? shaped : at::constant_pad_nd(shaped, {0, extra});
  }
  /// [1,H,B·T] of packed documents ↔ [B,H,T]; otherwise unchanged.
  at::Tensor unpacked_rows(const at::Tensor& x) const {
    if (!args.call.boundaries.defined()) return x;
    return x.view({in.heads, in.batch, in.rows}).transpose(0, 1).contiguous();
  }
  at::Tensor packed_rows(const at::Tensor& x) const {
    if (!args.call.boundaries.defined()) return x;
    return x.permute({1, 0, 2}).reshape({1, in.heads, in.batch * in.rows});
  }
};

FlashCall flash_call(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     AttentionOptions options) {
  Inputs in{q, k, v, options.log_mass, q.size(0), q.size(1), k.size(1), q.size(2), q.size(3)};
  if (options.pseudo && !in.log_mass.defined()) in.log_mass = row_log_mass(options, in.rows);
  // Only the pseudo mass depends on absolute positions; the kernels count from the first key.
  options.query_offset -= options.key_offset;
  options.key_offset = 0;
  if (in.log_mass.defined()) {
    in.log_mass = in.log_mass.to(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  }
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(in.dims)));
  KernelArgs args = q.is_cuda() ? prepare_cuda(in, options, scale) : prepare_cpu(in, options);
  args.call.scale = scale;
  if (in.log_mass.defined()) in.log_mass = in.log_mass.contiguous();
  return {std::move(in), std::move(args)};
}

AttentionOptions checked_options(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 AttentionOptions options) {
  check_attention("attention", q, k, v, options);
  if (options.window >= k.size(1)) options.window = 0;
  return options;
}

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& caller_options) {
  const AttentionOptions options = checked_options(q, k, v, caller_options);
  if (!use_flash(q, k, options)) return reference::attention(q, k, v, caller_options);
  const FlashCall call = flash_call(q, k, v, options);
  return call.output(
      CorrectedFlash::apply(call.in.q, call.in.k, call.in.v, call.log_mass(), call.args));
}

AttentionWithLse attention_with_lse(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const AttentionOptions& caller_options) {
  const at::NoGradGuard no_grad;
  const AttentionOptions options = checked_options(q, k, v, caller_options);
  if (!use_flash(q, k, options)) {
    return {reference::attention(q, k, v, caller_options),
            reference::attention_lse(q, k, caller_options)};
  }
  const FlashCall call = flash_call(q, k, v, options);
  flash::Result result = flash::forward(call.args.call, call.in.q, call.in.k, call.in.v);
  at::Tensor lse = result.lse;
  if (call.args.row_bias.defined()) lse = lse - call.args.row_bias;
  if (call.in.log_mass.defined()) {
    result.lse = lse.clone();
    STABLEMASK_KERNEL(q, stable_mask_correct_(result.out, result.lse, call.in.log_mass));
  }
  return {call.output(result.out), call.unpacked_rows(lse)};
}

AttentionForward attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const AttentionOptions& caller_options) {
  const at::NoGradGuard no_grad;
  const AttentionOptions options = checked_options(q, k, v, caller_options);
  if (!use_flash(q, k, options)) {
    const auto type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return {reference::attention(q, k, v, caller_options),
            at::zeros({q.size(0), q.size(2), q.size(1)}, q.options().dtype(type))};
  }
  const FlashCall call = flash_call(q, k, v, options);
  const flash::Result result =
      corrected_forward(call.args, call.in.q, call.in.k, call.in.v, call.in.log_mass);
  return {call.output(result.out), call.unpacked_rows(result.lse).contiguous()};
}

namespace {

/// Lets autograd record where the caller is below it or has switched it off.
class Recording {
 public:
  Recording() : keys_(with_autograd()) {}

 private:
  static c10::impl::LocalDispatchKeySet with_autograd() {
    c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
    keys.excluded_ = keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView;
    return keys;
  }

  c10::impl::ForceDispatchKeyGuard keys_;
  at::AutoGradMode mode_{true};
};

at::Tensor leaf(const at::Tensor& x) { return x.detach().requires_grad_(); }

/// Pseudo scores that record gradients.
PseudoScores leaves(const PseudoScores& pseudo) {
  return {leaf(pseudo.gamma), leaf(pseudo.p_base), pseudo.length};
}

AttentionGradients reference_gradients(const at::Tensor& dout, const at::Tensor& q,
                                       const at::Tensor& k, const at::Tensor& v,
                                       AttentionOptions options, bool mask_gradients) {
  const Recording recording;
  variable_list inputs{leaf(q), leaf(k), leaf(v)};
  if (mask_gradients) {
    options.pseudo = leaves(*options.pseudo);
    inputs.push_back(options.pseudo->gamma);
    inputs.push_back(options.pseudo->p_base);
  }
  const at::Tensor out = reference::attention(inputs[0], inputs[1], inputs[2], options);
  variable_list grads = torch::autograd::grad({out}, inputs, {dout});
  grads.resize(5);
  return {grads[0], grads[1], grads[2], grads[3], grads[4]};
}

/// Sum over the query heads that share a key head, where the kernel took a copy of the key for
/// each.
at::Tensor sum_groups(const at::Tensor& x, int64_t kv_heads) {
  if (x.size(2) == kv_heads) return x;
  return x.reshape({x.size(0), x.size(1), kv_heads, x.size(2) / kv_heads, x.size(3)}).sum(3);
}

}  // namespace

AttentionGradients attention_backward(const at::Tensor& dout, const at::Tensor& q,
                                      const at::Tensor& k, const at::Tensor& v,
                                      const AttentionForward& forward,
                                      const AttentionOptions& caller_options, bool mask_gradients) {
  const at::NoGradGuard no_grad;
  const AttentionOptions options = checked_options(q, k, v, caller_options);
  if (!use_flash(q, k, options)) {
    return reference_gradients(dout, q, k, v, caller_options, mask_gradients);
  }
  const FlashCall call = flash_call(q, k, v, options);
  const bool flash2 = call.args.call.kernel == flash::Kernel::kFlash2;
  const at::Tensor unread = at::empty({2}, q.options().dtype(flash2 ? at::kUInt64 : at::kLong));
  const flash::Result result{call.packed(forward.out), call.packed_rows(forward.lse), unread,
                             unread};
  const at::Tensor grad = call.packed(dout);
  const auto [dq, dk, dv] =
      flash::backward(call.args.call, grad, call.in.q, call.in.k, call.in.v, result);
  AttentionGradients grads{call.output(dq),
                           sum_groups(call.unpacked(dk, call.in.keys), k.size(2)),
                           sum_groups(call.unpacked(dv, call.in.keys), k.size(2)),
                           {},
                           {}};
  if (!mask_gradients) return grads;
  const at::Tensor dlog_mass = mass_gradient(call.args, grad, call.in.log_mass, result);
  const Recording recording;
  AttentionOptions recorded = options;
  recorded.pseudo = leaves(*options.pseudo);
  const at::Tensor log_mass = row_log_mass(recorded, call.in.rows);
  const variable_list mask =
      torch::autograd::grad({log_mass}, {recorded.pseudo->gamma, recorded.pseudo->p_base},
                            {call.unpacked_rows(dlog_mass).to(log_mass.scalar_type())});
  grads.gamma = mask[0];
  grads.p_base = mask[1];
  return grads;
}

}  // namespace stablemask::ops
