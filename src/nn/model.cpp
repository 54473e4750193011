// The model but for its mask (stable_mask.cpp), top to bottom: Attention, FeedForward, Norm, Block,
// Transformer.
// Legend: B batch, T time, C channels, H heads, Hkv key/value heads, D head dim, V vocabulary,
// L layers.
#include "stablemask/nn/model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "src/nn/declare.h"
#include "src/nn/recompute.h"
#include "stablemask/base/error.h"
#include "stablemask/ops/functional.h"

namespace stablemask::nn {
namespace {

ops::AttentionBackend attention_backend(AttentionBackend backend) {
  switch (backend) {
    case AttentionBackend::kReference:
      return ops::AttentionBackend::kReference;
    case AttentionBackend::kFlash:
      return ops::AttentionBackend::kFlash;
    case AttentionBackend::kAuto:
      break;
  }
  return ops::AttentionBackend::kAuto;
}

/// BlockImpl::forward with activation checkpointing.
at::Tensor recomputed_block(const std::shared_ptr<BlockImpl>& block, const at::Tensor& x,
                            const ForwardArgs& args) {
  const auto forward = [block, args](const Tensors& inputs) -> Tensors {
    return {block->forward(inputs[0], args)};
  };
  return recomputed(forward, {x}, block->parameters())[0];
}

/// x, after the observer, if there is one, has seen it.
at::Tensor observed(at::Tensor x, int64_t point, const ForwardArgs& args) {
  if (args.observer) args.observer->hidden(point, x);
  return x;
}

}  // namespace

AttentionImpl::AttentionImpl(const ModelConfig& config, int64_t layer, Fill fill)
    : config_(config), layer_(layer) {
  check_model(config);
  const auto declared = attention_parameters(config);
  const auto add = [&](const char* name) {
    return register_declared(*this, declared, name, config, fill);
  };
  qkv_ = register_linear(*this, declared, "qkv", layer, config, fill);
  proj_ = register_linear(*this, declared, "proj", layer, config, fill);
  if (config.qk_norm) {
    q_norm_ = add("q_norm");
    k_norm_ = add("k_norm");
  }
  if (config.position == Position::kAlibi) {
    slopes_ = register_buffer("alibi_slopes", ops::alibi_slopes(config.heads));
  }
  if (config.stable_mask.enabled) stable_mask = register_module("stable_mask", StableMask(config));
}

ops::AttentionOptions AttentionImpl::options(int64_t length, const ForwardArgs& args) const {
  ops::AttentionOptions options;
  if (config_.log_length_scale) {
    options.scale = std::log(static_cast<double>(length)) / std::log(1024.0) /
                    std::sqrt(static_cast<double>(config_.resolved_head_dim()));
  }
  if (stable_mask) options.pseudo = stable_mask->scores();
  options.log_mass = args.log_mass;
  options.alibi_slopes = slopes_;
  options.window = config_.window;
  if (args.cached.cache) {
    options.query_offset = args.cached.position;
    options.key_offset = args.cached.cache->first_visible(args.cached.position);
  }
  options.document_start = args.document_start;
  options.kernels = args.kernels;
  options.backend = args.kernels == ops::Kernels::kReference ? ops::AttentionBackend::kReference
                                                             : attention_backend(config_.attention);
  return options;
}

at::Tensor AttentionImpl::project(const ops::Input& x, const ForwardArgs& args) const {
  const int64_t heads = config_.heads, kv_heads = config_.resolved_kv_heads();
  const int64_t packed_heads = heads + 2 * kv_heads, rotated = heads + kv_heads;
  const ops::RopeInputs rope{config_.resolved_rope_dims(), args.positions, args.rope};
  const bool rotates = config_.position == Position::kRope && rope.dims > 0;
  if (rotates && !config_.qk_norm) {
    return qkv_.rotated(x, packed_heads, rotated, rope, args.kernels, args.dropout);
  }
  const at::Tensor packed =
      qkv_.forward(x, args.kernels, args.dropout)
          .view({x.x.size(0), x.x.size(1), packed_heads, config_.resolved_head_dim()});
  if (!config_.qk_norm) return packed;
  const at::Tensor all = normalised(packed, args.kernels);
  if (!rotates) return all;
  return ops::rope(all, rotated, rope.dims, rope.positions, rope.table, args.kernels);
}

at::Tensor AttentionImpl::normalised(const at::Tensor& packed, ops::Kernels kernels) const {
  const auto [q, k, v] = ops::split_heads(packed, config_.heads, config_.resolved_kv_heads());
  const auto norm = [&](const at::Tensor& part, const at::Tensor& weight) {
    return ops::rms_norm(part.contiguous(), weight, config_.norm_eps, kernels);
  };
  return at::cat({norm(q, q_norm_), norm(k, k_norm_), v}, 2);
}

at::Tensor AttentionImpl::forward(const ops::Input& x, const at::Tensor& residual,
                                  const ForwardArgs& args) {
  const int64_t batch = x.x.size(0), length = x.x.size(1);
  const int64_t heads = config_.heads, kv_heads = config_.resolved_kv_heads();
  const at::Tensor packed = project(x, args);
  const ops::AttentionOptions attends = options(length, args);
  if (args.observer) args.observer->attention(layer_, packed, attends);
  at::Tensor out;
  if (args.cached.cache) {
    const auto [q, new_k, new_v] = ops::split_heads(packed, heads, kv_heads);
    if (args.cached.rows.defined()) {
      args.cached.cache->begin(layer_, args.cached, new_k, new_v);
    } else {
      const auto [k, v] = args.cached.cache->append(layer_, args.cached, new_k, new_v);
      if (args.cached.position > 0) out = ops::attention(q, k, v, attends);
    }
  }
  if (!out.defined()) out = ops::packed_attention(packed, heads, kv_heads, attends);
  return proj_.add_to(residual, out.reshape({batch, length, -1}), args.kernels, args.dropout);
}

FeedForwardImpl::FeedForwardImpl(const ModelConfig& config, int64_t layer, Fill fill)
    : kind_(config.ffn) {
  const auto declared = feed_forward_parameters(config);
  up_ = register_linear(*this, declared, "up", layer, config, fill);
  down_ = register_linear(*this, declared, "down", layer, config, fill);
}

at::Tensor FeedForwardImpl::forward(const ops::Input& x, const at::Tensor& residual,
                                    ops::Kernels kernels, const DropoutStep& step) {
  if (kind_ == FfnKind::kSwiglu) return Linear::swiglu(up_, down_, x, residual, kernels, step);
  const ops::Gelu form = kind_ == FfnKind::kGelu ? ops::Gelu::kExact : ops::Gelu::kTanh;
  return down_.add_to(residual, ops::gelu(up_.forward(x, kernels, step), form), kernels, step);
}

NormImpl::NormImpl(const ModelConfig& config) : kind_(config.norm), eps_(config.norm_eps) {
  const auto declared = norm_parameters(config);
  weight_ = register_declared(*this, declared, "weight", config, Fill::kInitial);
  if (kind_ == NormKind::kLayer) {
    bias_ = register_declared(*this, declared, "bias", config, Fill::kInitial);
  }
}

at::Tensor NormImpl::forward(const at::Tensor& x, ops::Kernels kernels) const {
  return kind_ == NormKind::kRms ? ops::rms_norm(x, weight_, eps_, kernels)
                                 : ops::layer_norm(x, weight_, bias_, eps_);
}

std::tuple<at::Tensor, ops::Input> NormImpl::branch(const at::Tensor& x, ops::Kernels kernels) {
  if (kind_ != NormKind::kRms) return {x, ops::layer_norm(x, weight_, bias_, eps_)};
  const auto [through, normal] = ops::rms_norm_branch(x, weight_, eps_, kernels);
  if (!x.is_contiguous()) return {through, normal};  // rms_norm copies it
  return {through, {normal, x, weight_, eps_}};
}

BlockImpl::BlockImpl(const ModelConfig& config, int64_t layer, Fill fill)
    : parallel_(config.parallel_residual) {
  attention_norm_ = register_module("attention_norm", Norm(config));
  attention_ = register_module("attention", Attention(config, layer, fill));
  ffn_norm_ = register_module("ffn_norm", Norm(config));
  ffn_ = register_module("ffn", FeedForward(config, layer, fill));
}

at::Tensor BlockImpl::forward(const at::Tensor& in, const ForwardArgs& args) {
  auto [x, normal] = attention_norm_->branch(in, args.kernels);
  if (parallel_) {
    const auto [residual, ffn_normal] = ffn_norm_->branch(x, args.kernels);
    x = attention_->forward(normal, residual, args);
    return ffn_->forward(ffn_normal, x, args.kernels, args.dropout);
  }
  x = attention_->forward(normal, x, args);
  std::tie(x, normal) = ffn_norm_->branch(x, args.kernels);
  return ffn_->forward(normal, x, args.kernels, args.dropout);
}

std::vector<Linear> BlockImpl::linears() const {
  std::vector<Linear> all = attention_->linears();
  for (const Linear& linear : ffn_->linears()) all.push_back(linear);
  return all;
}

TransformerImpl::TransformerImpl(const ModelConfig& config)
    : config_(config), rope_tables_(config) {
  if (config.vocab_size < 1) {
    throw ConfigError(
        "/model/vocab_size: must be at least 1; set it to the tokenizer's vocabulary size");
  }
  check_model(config);
  const auto declared = nn::parameters(config);
  const auto add = [&](const char* name) {
    return Linear(register_declared(*this, declared, name, config, Fill::kNone));
  };
  const bool learned = config.position == Position::kLearned;
  const Linear tokens = add("embedding");
  embedding_ = Embedding(tokens, learned ? add("position_embedding") : Linear());
  head_ = config.tied_head ? tokens : add("head");
  blocks_ = register_module("blocks", torch::nn::ModuleList());
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    blocks_->push_back(Block(config, layer, Fill::kNone));
  }
  norm_ = register_module("norm", Norm(config));
}

std::vector<Linear> TransformerImpl::linears() const {
  std::vector<Linear> all = {head_};  // includes a tied embedding
  for (const auto& module : *blocks_) {
    for (const Linear& linear : module->as<BlockImpl>()->linears()) all.push_back(linear);
  }
  return all;
}

void TransformerImpl::begin_gradients() {
  for (const Linear& linear : linears()) linear.begin_gradient();
}

void TransformerImpl::finish_gradients() {
  for (const Linear& linear : linears()) linear.finish_gradient();
}

void TransformerImpl::require_weights() const {
  TORCH_CHECK(ready_,
              "Transformer: the weights are not set; call init_weights(seed), or weights_are_set() "
              "after filling every parameter");
}

void TransformerImpl::complete(ForwardArgs& args, const at::Tensor& tokens) {
  require_weights();
  args.kernels = kernels_;
  const int64_t length = tokens.size(1), first = args.cached.position;
  const bool rope = config_.position == Position::kRope;
  require_positions(config_, first + (args.cached.count > 0 ? args.cached.count : length));
  if (rope) args.rope = rope_tables_.from_start(first + length, tokens.device());
  if (rope || config_.position == Position::kLearned) {
    args.positions =
        at::arange(first, first + length, at::TensorOptions(at::kLong).device(tokens.device()));
    if (args.document_start.defined()) {
      args.positions = args.positions - args.document_start;
    }
  }
  // Without learnable masks all layers have the same pseudo mass: compute it once.
  if (config_.stable_mask.enabled && !config_.stable_mask.learnable &&
      config_.attention != AttentionBackend::kReference && kernels_ != ops::Kernels::kReference) {
    const auto block = blocks_->ptr<BlockImpl>(0);
    args.log_mass = ops::row_log_mass(block->attention()->options(length, args), length);
  }
}

at::Tensor TransformerImpl::hidden(const at::Tensor& tokens, ForwardArgs args) {
  complete(args, tokens);
  const bool recompute =
      checkpoint_activations_ && at::GradMode::is_enabled() && !args.cached.cache;
  at::Tensor x = observed(embedding_.forward(tokens, args.positions, kernels_), 0, args);
  int64_t point = 0;
  for (const auto& module : *blocks_) {
    const auto block = std::dynamic_pointer_cast<BlockImpl>(module);
    x = observed(recompute ? recomputed_block(block, x, args) : block->forward(x, args), ++point,
                 args);
  }
  return observed(norm_->forward(x, kernels_), ++point, args);
}

at::Tensor TransformerImpl::logits(const at::Tensor& tokens, ForwardArgs args) {
  return head_.forward(hidden(tokens, std::move(args)), kernels_);
}

at::Tensor TransformerImpl::loss(const at::Tensor& tokens, const at::Tensor& targets,
                                 const at::Tensor& scale, const LossOptions& options) {
  ForwardArgs args;
  args.document_start = options.document_start;
  args.observer = options.observer;
  args.dropout = options.dropout;
  const at::Tensor x = hidden(tokens, std::move(args)).view({-1, config_.channels});
  const auto head_gradient =
      options.backward_follows ? ops::HeadGradient::kInForward : ops::HeadGradient::kInBackward;
  return head_.loss(x, targets.reshape({-1}), scale, options.z_loss, head_gradient, kernels_);
}

at::Tensor TransformerImpl::loss(const at::Tensor& tokens, const at::Tensor& targets, double scale,
                                 const LossOptions& options) {
  const auto like = at::TensorOptions(at::kDouble).device(head_weight().device());
  return loss(tokens, targets, at::full({}, scale, like), options);
}

at::Tensor TransformerImpl::token_nll(const at::Tensor& tokens, const at::Tensor& targets,
                                      const at::Tensor& document_start) {
  at::NoGradGuard no_grad;
  ForwardArgs args;
  args.document_start = document_start;
  const at::Tensor x = hidden(tokens, std::move(args)).view({-1, config_.channels});
  return head_.nll(x, targets.reshape({-1}), kernels_).view(targets.sizes());
}

}  // namespace stablemask::nn
