#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask::nn {

enum class Role {
  kEmbedding,   ///< [V, C] token embedding; also the head if tied
  kPositions,   ///< [N, C] learned position table
  kHead,        ///< [V, C] language-model head if not tied
  kProjection,  ///< [out, in] matrix of a linear layer inside a block
  kVector,      ///< weight or bias of a norm, bias of a projection
  kMask,        ///< [H] of a learnable StableMask
  kAdapter,     ///< factor of a low-rank adapter, [k·r, in] or [out, r]
};

enum class Init {
  kNormal,          ///< N(0, init_std²)
  kResidualNormal,  ///< N(0, init_std²/(2L)), for the 2L projections that add to the residual
                    ///< stream
  kFanInUniform,    ///< U(−1/√in, 1/√in)
  kOnes,
  kZeros,
  kConfig,  ///< gamma and p_base of the config's stable_mask
};

/// Consecutive rows of a parameter that form one tensor of Hugging Face's Llama, or, for an
/// adapter, of PEFT's without the prefix "base_model.model.".
struct ExternalTensor {
  std::string name;  ///< "model.layers.0.self_attn.q_proj.weight"
  int64_t rows = 0;
};

/// Declaration of one parameter. Initialisation, parameter counts, memory estimates, flat layout,
/// freezing, weight decay and checkpoint names are derived from it.
struct Parameter {
  std::string name;  ///< key of model.safetensors: "blocks.0.attention.qkv"
  std::vector<int64_t> shape;
  Role role = Role::kProjection;
  Init init = Init::kNormal;
  int64_t block = -1;  ///< index of its block; -1: outside the blocks
  /// In the order of the rows; empty if Llama has no such tensor.
  std::vector<ExternalTensor> external;

  int64_t numel() const;
  /// Rows of the matrices that a projection consists of, in the order of the rows: of queries, keys
  /// and values; of gate and up; else of the projection itself. Empty for every other role.
  std::vector<int64_t> matrix_rows() const;
  /// Weight decay applies to matrices only.
  bool decays() const { return shape.size() >= 2; }
  /// Whether the gradient is computed by a GEMM, which may overwrite a stale buffer (ops/weight.h);
  /// all other gradients are accumulated into zeros. True for a tied embedding, as it is the head.
  bool multiplies = true;
  /// False for all but the adapters of a model that has some (config.lora).
  bool trainable = true;
  /// Whether finetuning with freeze_layers does not train it: true for what is not trainable and,
  /// with freeze_layers > 0, for the embedding (and with it a tied head), learned positions and the
  /// first freeze_layers blocks.
  bool is_frozen(int64_t freeze_layers) const;
};

/// All parameters of a model, in the order of its named_parameters(). `config.vocab_size` must be
/// resolved to a number.
std::vector<Parameter> parameters(const ModelConfig& config);

/// Suffixes of the names of a projection's adapter: "blocks.0.attention.qkv_lora_a".
inline constexpr const char* kAdapterA = "_lora_a";
inline constexpr const char* kAdapterB = "_lora_b";

/// Sum of numel() over parameters(config).
int64_t parameter_count(const ModelConfig& config);

/// Training FLOPs per token, forward and backward: 6·P + 6·L·H·D·T with T = `context`; P without
/// an untied embedding and learned positions, which are not multiplied; attention counts only the
/// causal half of the scores. With adapters 4·P for the frozen parameters, which have no gradient.
double flops_per_token(const ModelConfig& config, int64_t context);

/// Elements that a layer keeps of each token for the backward pass: two sums of the residual stream
/// and their norms, the packed projection, the attention's output, and the hidden activations of
/// the feed-forward layer before and after the nonlinearity. With adapters not what is read by
/// frozen projections alone, nor RMSNorm's and SwiGLU's results, which are computed again.
int64_t kept_per_token(const ModelConfig& config);

/// Throws ConfigError if layers, channels, heads, kv_heads, head_dim or rope_dims are inconsistent
/// or learned_positions is not resolved to a number.
/// For configs built in code; load_config makes the same checks.
void check_model(const ModelConfig& config);

/// Throws ConfigError if `tokens` are more than the learned positions of the model.
void require_positions(const ModelConfig& config, int64_t tokens);

}  // namespace stablemask::nn
