#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/nn/kv_cache.h"
#include "stablemask/nn/linear.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/ops/attention.h"

namespace stablemask::nn {

/// Whether a module fills its parameters when it is made: with random numbers of seed 0, or not at
/// all, because the model that owns it fills all at once.
enum class Fill { kInitial, kNone };

/// Arguments of a forward pass besides the tokens. The caller may set the first two; Transformer
/// sets the others, which all layers share.
struct ForwardArgs {
  at::Tensor document_start;  ///< int64 [B,T] or undefined (ops/attention.h)
  KvCache* cache = nullptr;   ///< the tokens follow those that are cached
  at::Tensor positions;       ///< int64 [T] or [B,T]
  at::Tensor rope;            ///< cos/sin table
  at::Tensor log_mass;        ///< log S, unless each layer learns its own (ops/attention.h)
  ops::Kernels kernels = ops::Kernels::kFused;
};

/// Pseudo scores of one attention layer; the mask itself is in ops/stable_mask.h. Parameters
/// `p_base` and `gamma_raw` (gamma = softplus) exist only when learnable.
class StableMaskImpl : public torch::nn::Module {
 public:
  explicit StableMaskImpl(const ModelConfig& config);
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

/// Causal self-attention over a packed projection [H queries | Hkv keys | Hkv values] · D. Throws
/// ConfigError when the heads do not fit the width.
class AttentionImpl : public torch::nn::Module {
 public:
  AttentionImpl(const ModelConfig& config, int64_t layer, Fill fill = Fill::kInitial);
  /// residual + attention of x, all [B,T,C].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual, const ForwardArgs& args);
  /// How this layer calls ops::attention for a block of `length` tokens.
  ops::AttentionOptions options(int64_t length, const ForwardArgs& args) const;
  std::vector<Linear> linears() const { return {qkv_, proj_}; }

  StableMask stable_mask{nullptr};  ///< null when off

 private:
  /// x [B,T,C] → [B,T,H+2·Hkv,D], queries and keys normalised by the config and rotated.
  at::Tensor project(const at::Tensor& x, const ForwardArgs& args) const;

  ModelConfig config_;
  int64_t layer_;
  Linear qkv_, proj_;
  at::Tensor q_norm_, k_norm_, slopes_;
};
TORCH_MODULE(Attention);

/// SwiGLU (gate and up packed, gate first) or GELU.
class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(const ModelConfig& config, Fill fill = Fill::kInitial);
  /// residual + the layer's output for x, all [B,T,C].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual,
                     ops::Kernels kernels = ops::Kernels::kFused);
  std::vector<Linear> linears() const { return {up_, down_}; }

 private:
  FfnKind kind_;
  Linear up_, down_;
};
TORCH_MODULE(FeedForward);

/// RMSNorm or LayerNorm by the config.
class NormImpl : public torch::nn::Module {
 public:
  explicit NormImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x, ops::Kernels kernels = ops::Kernels::kFused);
  /// (x, norm of x) for a residual stream: ops::rms_norm_branch.
  std::tuple<at::Tensor, at::Tensor> branch(const at::Tensor& x, ops::Kernels kernels);

 private:
  NormKind kind_;
  double eps_;
  at::Tensor weight_, bias_;
};
TORCH_MODULE(Norm);

/// Pre-norm block: x += attention(norm(x)), x += feed_forward(norm(x)). The last projection of each
/// sublayer accumulates onto the residual.
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const ModelConfig& config, int64_t layer, Fill fill = Fill::kInitial);
  at::Tensor forward(const at::Tensor& x, const ForwardArgs& args);  ///< [B,T,C] → [B,T,C]
  const Attention& attention() const { return attention_; }
  const FeedForward& feed_forward() const { return ffn_; }

 private:
  Norm attention_norm_{nullptr}, ffn_norm_{nullptr};
  Attention attention_{nullptr};
  FeedForward ffn_{nullptr};
};
TORCH_MODULE(Block);

/// Options of Transformer::loss.
struct LossOptions {
  double z_loss = 0.0;
  at::Tensor document_start;  ///< int64 [B,T] or undefined (ops/attention.h)
  /// The caller promises one `loss.backward()` with a gradient of 1 (ops::HeadGradient).
  bool backward_follows = false;
};

/// Decoder-only Transformer. Its parameters are those of nn::parameters(config), under the same
/// names.
class TransformerImpl : public torch::nn::Module {
 public:
  /// `config.vocab_size` and the mask length must be resolved, else ConfigError. The weights are
  /// not set: forward passes throw c10::Error until init_weights or weights_are_set.
  explicit TransformerImpl(const ModelConfig& config);

  /// Normal(0, init_std), residual projections scaled by 1/sqrt(2L), norms 1; a pure function of
  /// (seed, parameter name), the same on every device.
  void init_weights(uint64_t seed);
  /// Tells the model that all its parameters have been filled from elsewhere.
  void weights_are_set() { ready_ = true; }

  /// On: a backward runs each block's forward again instead of keeping its activations. Without
  /// effect on passes with a cache or without gradients.
  void checkpoint_activations(bool on) { checkpoint_activations_ = on; }
  /// kReference: every op of the model, attention included, is its formula in plain ATen.
  void use_kernels(ops::Kernels kernels) { kernels_ = kernels; }

  /// tokens int64 [B,T] → final normalised state [B,T,C].
  at::Tensor hidden(const at::Tensor& tokens, ForwardArgs args = {});
  /// [B,T,V].
  at::Tensor logits(const at::Tensor& tokens, ForwardArgs args = {});
  /// [B,V], of the last position alone.
  at::Tensor next_logits(const at::Tensor& tokens, ForwardArgs args = {});
  /// scale · Σ NLL over targets [B,T] ≠ −100 (ops::linear_cross_entropy); scale fp64 0-dim on the
  /// model's device.
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets, const at::Tensor& scale,
                  const LossOptions& options = {});
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets, double scale,
                  const LossOptions& options = {});
  /// fp32 [B,T], no gradients.
  at::Tensor token_nll(const at::Tensor& tokens, const at::Tensor& targets,
                       const at::Tensor& document_start = {});

  /// Around the micro-batches of a training step, see ops/weight.h: `begin_gradients` declares the
  /// gradients of all multiplied weights stale, `finish_gradients` zeroes those that no backward
  /// has written. The other gradients must be zero when the step begins.
  void begin_gradients();
  void finish_gradients();

  const ModelConfig& config() const { return config_; }
  const at::Tensor& head_weight() const { return head_.weight(); }  ///< [V, C]; tied: the embedding

 private:
  /// Fills in what every layer shares. Throws ConfigError for a cache where none can be used.
  void complete(ForwardArgs& args, const at::Tensor& tokens);
  at::Tensor rope_table(int64_t length, at::Device device);
  std::vector<Linear> linears() const;

  ModelConfig config_;
  bool checkpoint_activations_ = false, ready_ = false;
  ops::Kernels kernels_ = ops::Kernels::kFused;
  Linear embedding_, head_;
  /// Growing; none is dropped, because a recorded CUDA graph reads the one it was recorded with.
  std::vector<at::Tensor> rope_tables_;
  torch::nn::ModuleList blocks_{nullptr};
  Norm norm_{nullptr};
};
TORCH_MODULE(Transformer);

}  // namespace stablemask::nn
