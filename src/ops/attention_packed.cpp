#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

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

struct FusedCall {
  cuda::CudnnAttention cudnn;
  at::Tensor log_mass;  ///< fp32 [H,T], for the correction of the output; undefined: no correction
};

void save(AutogradContext* ctx, const FusedCall& call) {
  ctx->saved_data["heads"] = call.cudnn.heads;
  ctx->saved_data["kv_heads"] = call.cudnn.kv_heads;
  ctx->saved_data["scale"] = call.cudnn.scale;
  ctx->saved_data["slopes"] = call.cudnn.alibi_slopes;
}

/// Arguments of the backward. It needs no mask: out and lse contain its effect.
FusedCall load(AutogradContext* ctx) {
  FusedCall call;
  call.cudnn.heads = ctx->saved_data["heads"].toInt();
  call.cudnn.kv_heads = ctx->saved_data["kv_heads"].toInt();
  call.cudnn.scale = ctx->saved_data["scale"].toDouble();
  call.cudnn.alibi_slopes = ctx->saved_data["slopes"].toTensor();
  return call;
}

struct FusedAttention : torch::autograd::Function<FusedAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& packed, const FusedCall& call) {
    const int64_t batch = packed.size(0), length = packed.size(1), heads = call.cudnn.heads;
    at::Tensor out = at::empty({batch, length, heads, packed.size(3)}, packed.options());
    at::Tensor lse = at::empty({batch, heads, length}, packed.options().dtype(at::kFloat));
    cuda::cudnn_attention_forward(call.cudnn, packed, out, lse);
    if (call.log_mass.defined()) cuda::stable_mask_correct_(out, lse, call.log_mass);
    save(ctx, call);
    ctx->save_for_backward({packed, out, lse});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const FusedCall call = load(ctx);
    at::Tensor dpacked = at::empty_like(saved[0]);
    cuda::cudnn_attention_backward(call.cudnn, grads[0].contiguous(), saved[0], saved[1], saved[2],
                                   dpacked);
    return {dpacked, at::Tensor()};
  }
};

/// Whether a plain causal kernel and the correction cover the options.
bool is_plain(const at::Tensor& packed, const AttentionOptions& options) {
  const bool learned_mask = (options.log_mass.defined() && options.log_mass.requires_grad()) ||
                            (options.pseudo && (options.pseudo->gamma.requires_grad() ||
                                                options.pseudo->p_base.requires_grad()));
  const bool windowed = options.window > 0 && options.window < packed.size(1);
  return options.backend != AttentionBackend::kReference && !learned_mask && !windowed &&
         !options.document_start.defined() && options.query_offset == 0;
}

FusedCall fused_call(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                     const AttentionOptions& options) {
  FusedCall call;
  call.cudnn.heads = heads;
  call.cudnn.kv_heads = kv_heads;
  call.cudnn.scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(packed.size(3))));
  if (options.alibi_slopes.defined()) {
    call.cudnn.alibi_slopes = options.alibi_slopes.to(at::kFloat).contiguous();
  }
  if (!options.pseudo) return call;
  at::Tensor log_mass =
      options.log_mass.defined() ? options.log_mass : row_log_mass(options, packed.size(1));
  log_mass = log_mass.to(at::kFloat);
  if (options.pseudo->length.kind == MaskLength::Kind::kInfinite) {
    call.cudnn.sink = log_mass.select(1, 0).contiguous();  // equal in all rows
  } else {
    call.log_mass = log_mass.contiguous();
  }
  return call;
}

#endif

}  // namespace

at::Tensor packed_attention(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                            const AttentionOptions& options) {
  TORCH_CHECK(packed.dim() == 4 && kv_heads > 0 && heads % kv_heads == 0 &&
                  packed.size(2) == heads + 2 * kv_heads,
              "packed_attention: packed must be [B, T, ", heads + 2 * kv_heads, ", D], got ",
              packed.sizes());
#ifdef STABLEMASK_HAS_CUDA
  if (packed.is_cuda() && is_plain(packed, options) &&
      !at::globalContext().deterministicAlgorithms()) {
    const FusedCall call = fused_call(packed, heads, kv_heads, options);
    const bool gradients = at::GradMode::is_enabled() && packed.requires_grad();
    if (cuda::cudnn_attention_obstacle(call.cudnn, packed, gradients).empty()) {
      return FusedAttention::apply(packed, call);
    }
  }
#endif
  return composed_attention(packed, heads, kv_heads, options);
}

}  // namespace stablemask::ops
