#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/nn/embedding.h"
#include "stablemask/nn/forward_args.h"
#include "stablemask/nn/fp8.h"
#include "stablemask/nn/linear.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/nn/rope_tables.h"
#include "stablemask/nn/stable_mask.h"
#include "stablemask/ops/attention.h"

namespace stablemask::nn {

/// Whether a module's constructor initialises its parameters (kInitial, with seed 0) or leaves them
/// uninitialised (kNone), because the model that owns it fills all parameters later.
enum class Fill { kInitial, kNone };

/// Which parameters get initial values; kAdapters: those of the adapters (config.lora) alone, which
/// change no output before they are trained.
enum class InitScope { kAll, kAdapters };

/// Calls `take` in this thread with the name and the initial values of each parameter of `scope`,
/// in any order: N(0, init_std²), for residual projections N(0, init_std²/(2L)), norm weights 1;
/// fp32 on the CPU, valid during the call. They depend on (seed, name) only. Without those of a
/// mask (Init::kConfig), which a model has from its config. As many threads as LibTorch has make
/// them, a few parameters ahead of `take`.
void initial_weights(const ModelConfig& config, uint64_t seed, InitScope scope,
                     const std::function<void(const std::string&, const at::Tensor&)>& take);

/// RMSNorm or LayerNorm, as config.norm says.
class NormImpl : public torch::nn::Module {
 public:
  explicit NormImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x, ops::Kernels kernels = ops::Kernels::kFused) const;
  /// (x, norm(x)) for a residual stream; see ops::rms_norm_branch.
  std::tuple<at::Tensor, ops::Input> branch(const at::Tensor& x, ops::Kernels kernels);
  /// linear.forward(forward(x)); x + the SwiGLU layer of forward(x).
  at::Tensor then(const Linear& linear, const at::Tensor& x, ops::Kernels kernels) const;
  at::Tensor then_swiglu(const Linear& up, const Linear& down, const at::Tensor& x,
                         ops::Kernels kernels) const;

 private:
  NormKind kind_;
  double eps_;
  at::Tensor weight_, bias_;
};
TORCH_MODULE(Norm);

/// Causal self-attention with one packed projection to H query, Hkv key and Hkv value heads of D
/// dimensions. The constructor throws ConfigError if heads, kv_heads and channels are inconsistent.
class AttentionImpl : public torch::nn::Module {
 public:
  AttentionImpl(const ModelConfig& config, int64_t layer, Fill fill = Fill::kInitial);
  /// residual + proj(attention(qkv(x))), all [B,T,C].
  at::Tensor forward(const ops::Input& x, const at::Tensor& residual, const ForwardArgs& args);
  /// x + proj(attention(qkv(norm(x)))) of one new token of each of B cached sequences, x [B,C].
  at::Tensor decode(const at::Tensor& x, const Norm& norm, const DecodeArgs& args);
  /// Options of this layer's ops::attention call for `length` tokens.
  ops::AttentionOptions options(int64_t length, const ForwardArgs& args) const;
  /// Options of its ops::decode_attention calls, without the table of RoPE.
  ops::DecodeOptions decode_options() const;
  std::vector<Linear> linears() const { return {qkv_, proj_}; }

  StableMask stable_mask{nullptr};  ///< null when off

 private:
  /// x [B,T,C] → [B,T,H+2·Hkv,D]; queries and keys normalised (qk_norm) and rotated (RoPE) if the
  /// config asks for it.
  at::Tensor project(const ops::Input& x, const ForwardArgs& args) const;
  /// packed [B,T,H+2·Hkv,D] with queries and keys normalised (qk_norm).
  at::Tensor normalised(const at::Tensor& packed, ops::Kernels kernels) const;

  ModelConfig config_;
  int64_t layer_;
  Linear qkv_, proj_;
  at::Tensor q_norm_, k_norm_, slopes_;
};
TORCH_MODULE(Attention);

/// Feed-forward layer: down(silu(gate) · up) with gate and up packed in one projection, gate first,
/// or down(gelu(up)).
class FeedForwardImpl : public torch::nn::Module {
 public:
  FeedForwardImpl(const ModelConfig& config, int64_t layer, Fill fill = Fill::kInitial);
  /// residual + feed_forward(x), all [B,T,C].
  at::Tensor forward(const ops::Input& x, const at::Tensor& residual,
                     ops::Kernels kernels = ops::Kernels::kFused, const DropoutStep& step = {});
  /// x + feed_forward(norm(x)), [B,C].
  at::Tensor decode(const at::Tensor& x, const Norm& norm, ops::Kernels kernels);
  std::vector<Linear> linears() const { return {up_, down_}; }

 private:
  FfnKind kind_;
  Linear up_, down_;
};
TORCH_MODULE(FeedForward);

/// Pre-norm block: x += attention(norm(x)), x += feed_forward(norm(x)); with parallel_residual both
/// norms read the block's input. The residual addition is part of each sublayer's last projection.
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const ModelConfig& config, int64_t layer, Fill fill = Fill::kInitial);
  at::Tensor forward(const at::Tensor& x, const ForwardArgs& args);  ///< [B,T,C] → [B,T,C]
  at::Tensor decode(const at::Tensor& x, const DecodeArgs& args);    ///< [B,C] → [B,C]
  const Attention& attention() const { return attention_; }
  const FeedForward& feed_forward() const { return ffn_; }
  std::vector<Linear> linears() const;  ///< qkv, proj, up, down

 private:
  bool parallel_;
  Norm attention_norm_{nullptr}, ffn_norm_{nullptr};
  Attention attention_{nullptr};
  FeedForward ffn_{nullptr};
};
TORCH_MODULE(Block);

/// Decoder-only Transformer. Its named_parameters() are those of nn::parameters(config).
class TransformerImpl : public torch::nn::Module {
 public:
  /// Throws ConfigError if `config.vocab_size` or the mask length is not resolved to a number.
  /// Forward passes throw c10::Error until init_weights or weights_are_set is called.
  explicit TransformerImpl(const ModelConfig& config);

  /// Fills the parameters with initial_weights.
  void init_weights(uint64_t seed, InitScope scope = InitScope::kAll);
  /// Call after filling all parameters by other means, such as a checkpoint.
  void weights_are_set() { ready_ = true; }
  bool has_weights() const { return ready_; }

  /// Activation checkpointing: the backward recomputes each block's forward instead of keeping its
  /// activations. No effect on passes with a KV cache or without gradients.
  void checkpoint_activations(bool on) { checkpoint_activations_ = on; }
  /// kReference: all ops, attention included, use the formulas of ops/reference.h.
  void use_kernels(ops::Kernels kernels) { kernels_ = kernels; }
  ops::Kernels kernels() const { return kernels_; }

  /// tokens int64 [B,T] → output of the final norm [B,T,C]; logits [B,T,V].
  at::Tensor hidden(const at::Tensor& tokens, ForwardArgs args = {});
  at::Tensor logits(const at::Tensor& tokens, ForwardArgs args = {});
  /// ids int64 [B], one new token of each cached sequence → logits [B,V]. nn::Decoder calls it.
  at::Tensor decode(const at::Tensor& ids, const DecodeArgs& args);
  /// Of each layer, for sequences of at most `capacity` tokens and the weights as they are now.
  std::vector<ops::DecodeOptions> decode_options(int64_t capacity);
  /// scale · Σ NLL over targets [B,T] ≠ −100 (ops::linear_cross_entropy); scale fp64 0-dim on the
  /// model's device. Returns a 0-dim tensor.
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets, const at::Tensor& scale,
                  const LossOptions& options = {});
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets, double scale,
                  const LossOptions& options = {});
  /// Negative log-likelihood of each target, fp32 [B,T], 0 where the target is −100. No gradients.
  at::Tensor token_nll(const at::Tensor& tokens, const at::Tensor& targets,
                       const at::Tensor& document_start = {});

  /// Optional calls before and after the micro-batches of a training step (ops/weight.h).
  /// begin_gradients marks the gradient buffers of all Linear weights as stale, finish_gradients
  /// zeroes those that no backward has written. All others must be zero at the start of the step.
  void begin_gradients();
  void finish_gradients();

  const ModelConfig& config() const { return config_; }
  /// [V, C]; the embedding if tied.
  const at::Tensor& head_weight() const { return head_.weight(); }
  std::vector<Linear> linears() const;  ///< the head, then the projections of each block

  /// Fp8 products of training steps; null: none.
  std::shared_ptr<Fp8Products> fp8;

 private:
  /// Sets the members of `args` that all layers share.
  void complete(ForwardArgs& args, const at::Tensor& tokens);
  void require_weights() const;

  ModelConfig config_;
  bool checkpoint_activations_ = false, ready_ = false;
  ops::Kernels kernels_ = ops::Kernels::kFused;
  Embedding embedding_;
  Linear head_;
  RopeTables rope_tables_;
  torch::nn::ModuleList blocks_{nullptr};
  Norm norm_{nullptr};
};
TORCH_MODULE(Transformer);

/// Sets `fp8`, for the weights of all blocks, which stay at their place in memory from now on.
void use_fp8(Transformer& model, ops::fp8::Format gradients);

}  // namespace stablemask::nn
