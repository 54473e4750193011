// The whole model, top to bottom: StableMask, Attention, FeedForward, Norm, Block, Transformer.
// Legend: B batch, T time, C channels, H heads, D head dim, F FFN hidden, V vocabulary.
#include "stablemask/nn/model.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "src/nn/recompute.h"
#include "stablemask/base/error.h"
#include "stablemask/base/sha256.h"
#include "stablemask/ops/functional.h"

namespace stablemask::nn {
namespace {

at::Tensor per_head(const PerHead& spec, int64_t heads) {
  const auto count = static_cast<int64_t>(spec.values.size());
  TORCH_CHECK(count == 1 || count == heads, "expected 1 or ", heads, " values per head, got ",
              count);
  at::Tensor values = at::tensor(spec.values, at::kFloat);
  return count == heads ? values : values.repeat({heads});
}

ops::MaskLength mask_length(const MaskLengthSpec& spec) {
  switch (spec.kind) {
    case MaskLengthSpec::Kind::kFixed:
      return {ops::MaskLength::Kind::kFixed, spec.length};
    case MaskLengthSpec::Kind::kInfinite:
      return {ops::MaskLength::Kind::kInfinite, 0};
    case MaskLengthSpec::Kind::kSequence:
      return {ops::MaskLength::Kind::kSequence, 0};
    case MaskLengthSpec::Kind::kContext:
      break;
  }
  throw ConfigError(
      "/model/stable_mask/mask_length: \"context\" must be resolved to a number before a model is "
      "built; set it to the training context");
}

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

/// x with softplus(x) = gamma; a gamma of 0 starts a little above it, where the gradient lives.
at::Tensor inverse_softplus(const at::Tensor& gamma) {
  return at::log(at::expm1(gamma.clamp_min(1e-4)));
}

/// A seed that depends on nothing but the run's seed and the parameter's name.
uint64_t parameter_seed(uint64_t seed, const std::string& name) {
  const std::string key = std::to_string(seed) + ":" + name;
  return std::stoull(sha256_hex(key.data(), key.size()).substr(0, 16), nullptr, 16);
}

bool ends_with(const std::string& text, const std::string& ending) {
  return text.size() >= ending.size() &&
         text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

int64_t next_power_of_two(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

/// BlockImpl::forward, its activations forgotten until the backward.
at::Tensor recomputed_block(const std::shared_ptr<BlockImpl>& block, const at::Tensor& x,
                            const Context& context) {
  const auto forward = [block, context](const Tensors& inputs) -> Tensors {
    return {block->forward(inputs[0], context)};
  };
  return recomputed(forward, {x}, block->parameters())[0];
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, int64_t batch, int64_t capacity,
                 at::TensorOptions options)
    : capacity_(capacity) {
  const std::vector<int64_t> shape = {batch, capacity, config.resolved_kv_heads(),
                                      config.resolved_head_dim()};
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    keys_.push_back(at::empty(shape, options));
    values_.push_back(at::empty(shape, options));
  }
}

std::pair<at::Tensor, at::Tensor> KvCache::append(int64_t layer, const at::Tensor& k,
                                                  const at::Tensor& v) {
  const int64_t end = length_ + k.size(1);
  TORCH_CHECK(end <= capacity_, "KV cache of ", capacity_, " tokens cannot hold ", end);
  keys_.at(layer).narrow(1, length_, k.size(1)).copy_(k);
  values_.at(layer).narrow(1, length_, v.size(1)).copy_(v);
  return {keys_[layer].narrow(1, 0, end), values_[layer].narrow(1, 0, end)};
}

void KvCache::truncate(int64_t length) {
  TORCH_CHECK(length >= 0 && length <= length_, "cannot truncate a KV cache of ", length_,
              " tokens to ", length);
  length_ = length;
}

StableMaskImpl::StableMaskImpl(const StableMaskConfig& config, int64_t heads)
    : length_(mask_length(config.mask_length)), learnable_(config.learnable) {
  const at::Tensor gamma =
      config.gamma.slopes ? ops::alibi_slopes(heads) : per_head(config.gamma.value, heads);
  const at::Tensor p_base = per_head(config.p_base, heads);
  if (learnable_) {
    gamma_raw_ = register_parameter("gamma_raw", inverse_softplus(gamma));
    p_base_ = register_parameter("p_base", p_base);
  } else {
    gamma_ = register_buffer("gamma", gamma);
    p_base_ = register_buffer("p_base", p_base);
  }
}

ops::PseudoScores StableMaskImpl::scores() const {
  if (!learnable_) return {gamma_, p_base_, length_};
  return {at::softplus(gamma_raw_.to(at::kFloat)), p_base_.to(at::kFloat), length_};
}

at::Tensor StableMaskImpl::pseudo_mask(int64_t length) const {
  return ops::pseudo_mask(scores(), length);
}

at::Tensor StableMaskImpl::log_pseudo_mass(int64_t length, int64_t offset) const {
  return ops::log_pseudo_mass(scores(), length, offset);
}

at::Tensor StableMaskImpl::mask_ratio(const at::Tensor& lse, int64_t offset) const {
  return ops::mask_ratio(lse, log_pseudo_mass(lse.size(-1), offset));
}

AttentionImpl::AttentionImpl(const ModelConfig& config, int64_t layer)
    : config_(config), layer_(layer) {
  const int64_t heads = config.heads, kv_heads = config.resolved_kv_heads();
  const int64_t head_dim = config.resolved_head_dim();
  qkv_ = register_parameter("qkv", at::empty({(heads + 2 * kv_heads) * head_dim, config.channels}));
  proj_ = register_parameter("proj", at::empty({config.channels, heads * head_dim}));
  if (config.qk_norm) {
    q_norm_ = register_parameter("q_norm", at::ones({head_dim}));
    k_norm_ = register_parameter("k_norm", at::ones({head_dim}));
  }
  if (config.position == Position::kAlibi) {
    slopes_ = register_buffer("alibi_slopes", ops::alibi_slopes(heads));
  }
  if (config.stable_mask.enabled) {
    stable_mask = register_module("stable_mask", StableMask(config.stable_mask, heads));
  }
}

ops::AttentionOptions AttentionImpl::options(int64_t length, const Context& context) const {
  ops::AttentionOptions options;
  if (config_.log_length_scale) {
    options.scale = std::log(static_cast<double>(length)) / std::log(1024.0) /
                    std::sqrt(static_cast<double>(config_.resolved_head_dim()));
  }
  if (stable_mask) options.pseudo = stable_mask->scores();
  options.log_mass = context.log_mass;
  options.alibi_slopes = slopes_;
  options.window = config_.window;
  options.query_offset = context.cache ? context.cache->length() : 0;
  options.document_start = context.document_start;
  options.backend = attention_backend(config_.attention);
  return options;
}

at::Tensor AttentionImpl::project(const at::Tensor& x, const Context& context) const {
  const int64_t heads = config_.heads, kv_heads = config_.resolved_kv_heads();
  const int64_t packed_heads = heads + 2 * kv_heads, rotated = heads + kv_heads;
  const ops::RopeInputs rope{config_.resolved_rope_dims(), context.positions, context.rope};
  const bool rotates = config_.position == Position::kRope && rope.dims > 0;
  if (rotates && !config_.qk_norm) {
    return ops::rope_linear(x, qkv_, packed_heads, rotated, rope);
  }
  const at::Tensor packed =
      ops::linear(x, qkv_).view({x.size(0), x.size(1), packed_heads, config_.resolved_head_dim()});
  if (!config_.qk_norm) return packed;
  const auto [q, k, v] = ops::split_heads(packed, heads, kv_heads);
  const at::Tensor normal = at::cat({ops::rms_norm(q.contiguous(), q_norm_, config_.norm_eps),
                                     ops::rms_norm(k.contiguous(), k_norm_, config_.norm_eps), v},
                                    2);
  return rotates ? ops::rope(normal, rotated, rope.dims, rope.positions, rope.table) : normal;
}

at::Tensor AttentionImpl::forward(const at::Tensor& x, const at::Tensor& residual,
                                  const Context& context) {
  const int64_t heads = config_.heads, kv_heads = config_.resolved_kv_heads();
  const at::Tensor packed = project(x, context);
  at::Tensor out;
  if (context.cache) {
    const auto [q, new_k, new_v] = ops::split_heads(packed, heads, kv_heads);
    const auto [k, v] = context.cache->append(layer_, new_k, new_v);
    out = ops::attention(q, k, v, options(x.size(1), context));
  } else {
    out = ops::packed_attention(packed, heads, kv_heads, options(x.size(1), context));
  }
  return ops::linear_add(out.reshape({x.size(0), x.size(1), -1}), proj_, residual);
}

FeedForwardImpl::FeedForwardImpl(const ModelConfig& config) : kind_(config.ffn) {
  const int64_t packed = kind_ == FfnKind::kSwiglu ? 2 * config.ffn_hidden : config.ffn_hidden;
  up_ = register_parameter("up", at::empty({packed, config.channels}));
  down_ = register_parameter("down", at::empty({config.channels, config.ffn_hidden}));
}

at::Tensor FeedForwardImpl::forward(const at::Tensor& x, const at::Tensor& residual) {
  if (kind_ == FfnKind::kSwiglu) return ops::swiglu_feed_forward(x, up_, down_, residual);
  return ops::linear_add(ops::gelu(ops::linear(x, up_)), down_, residual);
}

NormImpl::NormImpl(const ModelConfig& config) : kind_(config.norm), eps_(config.norm_eps) {
  weight_ = register_parameter("weight", at::ones({config.channels}));
  if (kind_ == NormKind::kLayer) bias_ = register_parameter("bias", at::zeros({config.channels}));
}

at::Tensor NormImpl::forward(const at::Tensor& x) {
  return kind_ == NormKind::kRms ? ops::rms_norm(x, weight_, eps_)
                                 : ops::layer_norm(x, weight_, bias_, eps_);
}

std::tuple<at::Tensor, at::Tensor> NormImpl::branch(const at::Tensor& x) {
  if (kind_ == NormKind::kRms) return ops::rms_norm_branch(x, weight_, eps_);
  return {x, ops::layer_norm(x, weight_, bias_, eps_)};
}

BlockImpl::BlockImpl(const ModelConfig& config, int64_t layer) {
  attention_norm_ = register_module("attention_norm", Norm(config));
  attention_ = register_module("attention", Attention(config, layer));
  ffn_norm_ = register_module("ffn_norm", Norm(config));
  ffn_ = register_module("ffn", FeedForward(config));
}

at::Tensor BlockImpl::forward(const at::Tensor& in, const Context& context) {
  auto [x, normal] = attention_norm_->branch(in);
  x = attention_->forward(normal, x, context);
  std::tie(x, normal) = ffn_norm_->branch(x);
  return ffn_->forward(normal, x);
}

TransformerImpl::TransformerImpl(const ModelConfig& config) : config_(config) {
  if (config.vocab_size < 1) {
    throw ConfigError("/model/vocab_size: must be known before a model is built");
  }
  embedding_ = register_parameter("embedding", at::empty({config.vocab_size, config.channels}));
  blocks_ = register_module("blocks", torch::nn::ModuleList());
  for (int64_t layer = 0; layer < config.layers; ++layer) blocks_->push_back(Block(config, layer));
  norm_ = register_module("norm", Norm(config));
  if (!config.tied_head) {
    head_ = register_parameter("head", at::empty({config.vocab_size, config.channels}));
  }
}

void TransformerImpl::init_weights(uint64_t seed) {
  at::NoGradGuard no_grad;
  const double residual_std =
      config_.init_std / std::sqrt(2.0 * static_cast<double>(config_.layers));
  for (auto& item : named_parameters()) {
    at::Tensor& parameter = item.value();
    if (parameter.dim() < 2) continue;  // norms and mask parameters are born with their values
    // From blocks into the residual stream; summed over 2L sublayers the stream keeps its scale.
    const bool residual = ends_with(item.key(), ".proj") || ends_with(item.key(), ".down");
    at::Generator generator =
        at::make_generator<at::CPUGeneratorImpl>(parameter_seed(seed, item.key()));
    parameter.copy_(at::empty(parameter.sizes(), at::kFloat)
                        .normal_(0.0, residual ? residual_std : config_.init_std, generator));
  }
}

at::Tensor TransformerImpl::head_weight() const { return head_.defined() ? head_ : embedding_; }

void TransformerImpl::complete(Context& context, const at::Tensor& tokens) {
  const int64_t length = tokens.size(1);
  const bool sequence_mask = config_.stable_mask.enabled && config_.stable_mask.mask_length.kind ==
                                                                MaskLengthSpec::Kind::kSequence;
  if (context.cache && sequence_mask) {
    throw ConfigError(
        "stable_mask.mask_length \"sequence\" depends on the block's length and cannot run with a "
        "KV "
        "cache, where the block is one token; train with a fixed mask_length, or evaluate without "
        "a "
        "cache");
  }
  if (context.cache && config_.log_length_scale) {
    throw ConfigError(
        "model.log_length_scale scales by the block's length and cannot run with a KV cache, where "
        "the block is one token; train without it, or evaluate without a cache");
  }
  const int64_t offset = context.cache ? context.cache->length() : 0;
  if (config_.position == Position::kRope) {
    context.positions =
        at::arange(offset, offset + length, at::TensorOptions(at::kLong).device(tokens.device()));
    if (context.document_start.defined()) {
      context.positions = context.positions - context.document_start;
    }
    context.rope = rope_table(offset + length, tokens.device());
  }
  // One pseudo mass serves every layer unless each learns its own.
  if (config_.stable_mask.enabled && !config_.stable_mask.learnable &&
      config_.attention != AttentionBackend::kReference) {
    const auto first = blocks_->ptr<BlockImpl>(0);
    context.log_mass = ops::row_log_mass(first->attention()->options(length, context), length);
  }
}

at::Tensor TransformerImpl::rope_table(int64_t length, at::Device device) {
  const bool fits = !rope_tables_.empty() && rope_tables_.back().size(0) >= length &&
                    rope_tables_.back().device() == device;
  if (!fits) {
    rope_tables_.push_back(
        ops::rope_table(next_power_of_two(length), config_.resolved_rope_dims(), config_.rope_theta)
            .to(device));
  }
  return rope_tables_.back();
}

at::Tensor TransformerImpl::hidden(const at::Tensor& tokens, Context context) {
  complete(context, tokens);
  const bool recompute = checkpoint_activations_ && at::GradMode::is_enabled() && !context.cache;
  at::Tensor x = ops::embedding(tokens, embedding_);
  for (const auto& module : *blocks_) {
    const auto block = std::dynamic_pointer_cast<BlockImpl>(module);
    x = recompute ? recomputed_block(block, x, context) : block->forward(x, context);
  }
  if (context.cache) context.cache->advance(tokens.size(1));
  return norm_->forward(x);
}

at::Tensor TransformerImpl::logits(const at::Tensor& tokens, Context context) {
  return ops::linear(hidden(tokens, std::move(context)), head_weight());
}

at::Tensor TransformerImpl::loss(const at::Tensor& tokens, const at::Tensor& targets, double scale,
                                 double z_loss, const at::Tensor& document_start) {
  Context context;
  context.document_start = document_start;
  const at::Tensor x = hidden(tokens, std::move(context)).view({-1, config_.channels});
  return ops::linear_cross_entropy(x, head_weight(), targets.reshape({-1}), scale, z_loss);
}

at::Tensor TransformerImpl::token_nll(const at::Tensor& tokens, const at::Tensor& targets,
                                      const at::Tensor& document_start) {
  at::NoGradGuard no_grad;
  Context context;
  context.document_start = document_start;
  const at::Tensor x = hidden(tokens, std::move(context)).view({-1, config_.channels});
  return ops::linear_nll(x, head_weight(), targets.reshape({-1})).view(targets.sizes());
}

bool multiplies_once(const ModelConfig& config, const std::string& parameter_name) {
  for (const char* projection : {".qkv", ".proj", ".up", ".down"}) {
    if (ends_with(parameter_name, projection)) return true;
  }
  return parameter_name == (config.tied_head ? "embedding" : "head");
}

int64_t parameter_count(const ModelConfig& config) {
  const int64_t head_dim = config.resolved_head_dim();
  const int64_t query = config.heads * head_dim;
  const int64_t key_value = 2 * config.resolved_kv_heads() * head_dim;
  const int64_t norm = config.channels * (config.norm == NormKind::kLayer ? 2 : 1);
  const int64_t attention =
      config.channels * (2 * query + key_value) + (config.qk_norm ? 2 * head_dim : 0);
  const int64_t mask =
      config.stable_mask.enabled && config.stable_mask.learnable ? 2 * config.heads : 0;
  const int64_t ffn =
      config.channels * config.ffn_hidden * (config.ffn == FfnKind::kSwiglu ? 3 : 2);
  const int64_t tables = config.vocab_size * config.channels * (config.tied_head ? 1 : 2);
  return tables + config.layers * (attention + mask + ffn + 2 * norm) + norm;
}

double flops_per_token(const ModelConfig& config, int64_t context) {
  const int64_t lookups = config.tied_head ? 0 : config.vocab_size * config.channels;
  const auto multiplied = static_cast<double>(parameter_count(config) - lookups);
  const auto attention =
      static_cast<double>(config.layers * config.heads * config.resolved_head_dim() * context);
  return 6.0 * multiplied + 6.0 * attention;
}

}  // namespace stablemask::nn
