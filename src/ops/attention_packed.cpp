#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <optional>

#include "src/ops/attention_bf16.h"
#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "stablemask/ops/attention.h"
#include "stablemask/ops/functional.h"

#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/cudnn_attention.h"
#endif

namespace stablemask::ops {
namespace {

/// split_heads followed by attention.
at::Tensor composed_attention(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                              const AttentionOptions& options) {
  const auto [q, k, v] = split_heads(packed, heads, kv_heads);
  return attention(q, k, v, options);
}

#ifdef STABLEMASK_HAS_CUDA

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void save(AutogradContext* ctx, const cuda::CudnnAttention& call) {
  ctx->saved_data["heads"] = call.heads;
  ctx->saved_data["kv_heads"] = call.kv_heads;
  ctx->saved_data["scale"] = call.scale;
  ctx->saved_data["slopes"] = call.alibi_slopes;
  ctx->saved_data["deterministic"] = call.deterministic;
}

/// Arguments of cuDNN's backward. It needs no mask: out and lse contain its effect.
cuda::CudnnAttention load(AutogradContext* ctx) {
  cuda::CudnnAttention call;
  call.heads = ctx->saved_data["heads"].toInt();
  call.kv_heads = ctx->saved_data["kv_heads"].toInt();
  call.scale = ctx->saved_data["scale"].toDouble();
  call.alibi_slopes = ctx->saved_data["slopes"].toTensor();
  call.deterministic = ctx->saved_data["deterministic"].toBool();
  return call;
}

/// log_mass: fp32 [H,T], contiguous. cuDNN adds it as the sink where `call` has one; otherwise a
/// kernel corrects cuDNN's result. Out and lse contain the mass in both cases.
struct FusedAttention : torch::autograd::Function<FusedAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& packed,
                            const std::optional<at::Tensor>& log_mass,
                            const cuda::CudnnAttention& call) {
    const int64_t batch = packed.size(0), length = packed.size(1);
    at::Tensor out = at::empty({batch, length, call.heads, packed.size(3)}, packed.options());
    at::Tensor lse = at::empty({batch, call.heads, length}, packed.options().dtype(at::kFloat));
    cuda::cudnn_attention_forward(call, packed, out, lse);
    if (log_mass && !call.sink.defined()) cuda::stable_mask_correct_(out, lse, *log_mass);
    save(ctx, call);
    ctx->save_for_backward({packed, out, lse, log_mass.value_or(at::Tensor())});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &packed = saved[0], &out = saved[1], &lse = saved[2], &log_mass = saved[3];
    const at::Tensor dout = grads[0].contiguous();
    at::Tensor dpacked, dlog_mass;
    if (log_mass.defined() && ctx->needs_input_grad(1)) {
      dlog_mass = cuda::stable_mask_mass_gradient(dout, out, lse, log_mass);
    }
    if (ctx->needs_input_grad(0)) {
      dpacked = at::empty_like(packed);
      cuda::cudnn_attention_backward(load(ctx), dout, packed, out, lse, dpacked);
    }
    return {dpacked, dlog_mass, at::Tensor()};
  }
};

/// Whether a plain causal kernel and the correction cover the options.
bool is_plain(const at::Tensor& packed, const AttentionOptions& options) {
  const bool windowed = options.window > 0 && options.window < packed.size(1);
  return options.backend != AttentionBackend::kReference && !windowed &&
         !options.document_start.defined() && options.query_offset == 0;
}

struct FusedCall {
  cuda::CudnnAttention cudnn;
  std::optional<at::Tensor> log_mass;
};

FusedCall fused_call(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                     const AttentionOptions& options) {
  FusedCall call;
  call.cudnn.heads = heads;
  call.cudnn.kv_heads = kv_heads;
  call.cudnn.deterministic = at::globalContext().deterministicAlgorithms();
  call.cudnn.scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(packed.size(3))));
  if (options.alibi_slopes.defined()) {
    call.cudnn.alibi_slopes = options.alibi_slopes.to(at::kFloat).contiguous();
  }
  if (!options.pseudo) return call;
  const at::Tensor log_mass =
      options.log_mass.defined() ? options.log_mass : row_log_mass(options, packed.size(1));
  call.log_mass = log_mass.to(at::kFloat).contiguous();
  if (options.pseudo->length.kind == MaskLength::Kind::kInfinite) {  // equal in all rows
    call.cudnn.sink = call.log_mass->detach().select(1, 0).contiguous();
  }
  return call;
}

#endif

}  // namespace

at::Tensor packed_attention(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                            const AttentionOptions& options) {
  constexpr const char* kOp = "packed_attention";
  check_float(kOp, "packed", packed);
  TORCH_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, kOp,
              ": heads must be a multiple of kv_heads, both at least 1, got ", heads, " and ",
              kv_heads);
  TORCH_CHECK(packed.dim() == 4 && packed.size(2) == heads + 2 * kv_heads && packed.numel() > 0,
              kOp, ": packed must be [B, T, ", heads + 2 * kv_heads,
              ", D] without a dimension of size 0, got ", packed.sizes());
  check_attention_options(kOp, {packed.size(0), packed.size(1), packed.size(1), heads, packed},
                          options);
#ifdef STABLEMASK_HAS_CUDA
  if (packed.is_cuda() && is_plain(packed, options)) {
    const FusedCall call = fused_call(packed, heads, kv_heads, options);
    // In deterministic mode a forward pass has the same bits whether or not it takes gradients.
    const bool gradients =
        call.cudnn.deterministic || (at::GradMode::is_enabled() && packed.requires_grad());
    if (cuda::cudnn_attention_obstacle(call.cudnn, packed, gradients).empty()) {
      return FusedAttention::apply(packed, call.log_mass, call.cudnn);
    }
  }
#endif
  if (has_bf16_attention(packed, options)) {
    return bf16_attention(packed, heads, kv_heads, options);
  }
  return composed_attention(packed, heads, kv_heads, options);
}

}  // namespace stablemask::ops
