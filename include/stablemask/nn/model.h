#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/ops/attention.h"

namespace stablemask::nn {

/// Keys (rotated) and values of every layer, [B, capacity, Hkv, D] each, filled to `length`.
class KvCache {
 public:
  /// `length()` tokens of each of B sequences are cached; `capacity` is the most it can hold.
  KvCache(const ModelConfig& config, int64_t batch, int64_t capacity, at::TensorOptions options);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  /// Writes k, v [B,T,Hkv,D] of `layer` behind the cached ones; returns views of all S = length +
  /// T.
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  /// After every layer has appended T tokens.
  void advance(int64_t tokens) { length_ += tokens; }
  void truncate(int64_t length);

 private:
  std::vector<at::Tensor> keys_, values_;
  int64_t length_ = 0, capacity_ = 0;
};

/// What a forward pass knows besides the tokens.
struct Context {
  at::Tensor document_start;  ///< int64 [B,T] or undefined (ops/attention.h)
  at::Tensor positions;       ///< int64 [T] or [B,T]; set by Transformer
  at::Tensor rope;            ///< cos/sin table; set by Transformer
  at::Tensor log_mass;        ///< log S shared by all layers (ops/attention.h); set by Transformer
  KvCache* cache = nullptr;
};

/// Pseudo scores of one attention layer; the mask itself lives in ops/stable_mask.h. Parameters
/// `p_base` and `gamma_raw` (gamma = softplus) exist only when learnable.
class StableMaskImpl : public torch::nn::Module {
 public:
  StableMaskImpl(const StableMaskConfig& config, int64_t heads);
  ops::PseudoScores scores() const;
  at::Tensor pseudo_mask(int64_t length) const;                            ///< P [H,T,T]
  at::Tensor log_pseudo_mass(int64_t length, int64_t offset = 0) const;    ///< log S [H,T]
  at::Tensor mask_ratio(const at::Tensor& lse, int64_t offset = 0) const;  ///< lse [...,H,T] → ρ

 private:
  ops::MaskLength length_;
  at::Tensor gamma_, p_base_, gamma_raw_;
  bool learnable_;
};
TORCH_MODULE(StableMask);

/// Causal self-attention over a packed projection [H queries | Hkv keys | Hkv values] · D.
class AttentionImpl : public torch::nn::Module {
 public:
  AttentionImpl(const ModelConfig& config, int64_t layer);
  /// residual + attention of x, all [B,T,C].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual, const Context& context);
  /// How this layer calls ops::attention for a block of `length` tokens.
  ops::AttentionOptions options(int64_t length, const Context& context) const;

  StableMask stable_mask{nullptr};  ///< null when off

 private:
  /// x [B,T,C] → [B,T,H+2·Hkv,D], queries and keys normalised by the config and rotated.
  at::Tensor project(const at::Tensor& x, const Context& context) const;

  ModelConfig config_;
  int64_t layer_;
  at::Tensor qkv_, proj_, q_norm_, k_norm_, slopes_;
};
TORCH_MODULE(Attention);

/// SwiGLU (gate and up packed, gate first) or GELU.
class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(const ModelConfig& config);
  /// residual + the layer's output for x, all [B,T,C].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual);

 private:
  FfnKind kind_;
  at::Tensor up_, down_;
};
TORCH_MODULE(FeedForward);

/// RMSNorm or LayerNorm by the config.
class NormImpl : public torch::nn::Module {
 public:
  explicit NormImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x);
  /// (x, norm of x): for a residual stream, which goes on beside its norm.
  std::tuple<at::Tensor, at::Tensor> branch(const at::Tensor& x);

 private:
  NormKind kind_;
  double eps_;
  at::Tensor weight_, bias_;
};
TORCH_MODULE(Norm);

/// Pre-norm block: x += attention(norm(x)), x += feed_forward(norm(x)). Each sum is formed by the
/// sublayer's last projection.
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const ModelConfig& config, int64_t layer);
  at::Tensor forward(const at::Tensor& x, const Context& context);  ///< [B,T,C] → [B,T,C]
  const Attention& attention() const { return attention_; }

 private:
  Norm attention_norm_{nullptr}, ffn_norm_{nullptr};
  Attention attention_{nullptr};
  FeedForward ffn_{nullptr};
};
TORCH_MODULE(Block);

/// Decoder-only Transformer. Parameter names are the keys of model.safetensors.
class TransformerImpl : public torch::nn::Module {
 public:
  /// `config.vocab_size` and the mask length must be resolved. Weights are uninitialised until
  /// `init_weights`.
  explicit TransformerImpl(const ModelConfig& config);

  /// Normal(0, init_std), residual projections scaled by 1/sqrt(2L), norms 1; a pure function of
  /// (seed, parameter name), the same on every device.
  void init_weights(uint64_t seed);

  /// On: a backward runs each block's forward again instead of keeping its activations. Blocks
  /// behind a cache and forwards without gradients do not care.
  void checkpoint_activations(bool on) { checkpoint_activations_ = on; }

  /// tokens int64 [B,T] → final normalised state [B,T,C].
  at::Tensor hidden(const at::Tensor& tokens, Context context = {});
  /// [B,T,V].
  at::Tensor logits(const at::Tensor& tokens, Context context = {});
  /// scale · Σ NLL over targets [B,T] ≠ −100 (ops::linear_cross_entropy).
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets, double scale,
                  double z_loss = 0.0, const at::Tensor& document_start = {});
  /// fp32 [B,T], no gradients.
  at::Tensor token_nll(const at::Tensor& tokens, const at::Tensor& targets,
                       const at::Tensor& document_start = {});

  const ModelConfig& config() const { return config_; }
  at::Tensor head_weight() const;  ///< [V, C]; the embedding when tied

 private:
  /// Fills in what every layer shares. Throws ConfigError for a cache where none can be used.
  void complete(Context& context, const at::Tensor& tokens);
  at::Tensor rope_table(int64_t length, at::Device device);

  ModelConfig config_;
  bool checkpoint_activations_ = false;
  at::Tensor embedding_, head_;
  /// Growing; none is dropped, because a recorded CUDA graph reads the one it was recorded with.
  std::vector<at::Tensor> rope_tables_;
  torch::nn::ModuleList blocks_{nullptr};
  Norm norm_{nullptr};
};
TORCH_MODULE(Transformer);

/// Whether a forward pass multiplies by the parameter once, so that a backward under ops::StepGrads
/// may overwrite its gradient: the blocks' projections and the head, a tied one too.
bool multiplies_once(const ModelConfig& config, const std::string& parameter_name);

int64_t parameter_count(const ModelConfig& config);
/// Training FLOPs per token: 6·(P − V·C_embedding) + 6·L·H·D·T (docs: causal attention counted
/// half).
double flops_per_token(const ModelConfig& config, int64_t context);

}  // namespace stablemask::nn
