#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask::nn {

enum class Role {
  kEmbedding,   ///< [V, C] rows looked up by token id; the head's matrix too when tied
  kHead,        ///< [V, C] of an untied language-model head
  kProjection,  ///< [out, in] matrix of a linear layer inside a block
  kVector,      ///< weight or bias of a norm
  kMask,        ///< [H] of a learnable StableMask
};

enum class Init {
  kNormal,          ///< N(0, init_std²)
  kResidualNormal,  ///< N(0, init_std²/(2L)): writes into the residual stream, 2L times a pass
  kOnes,
  kZeros,
  kConfig,  ///< the mask's gamma and p_base as the config states them
};

/// Consecutive rows of a parameter and the tensor of the same values in Hugging Face's Llama.
struct ExternalTensor {
  std::string name;  ///< "model.layers.0.self_attn.q_proj.weight"
  int64_t rows = 0;
};

/// One parameter of the model. Everything that is known of it is declared here, once:
/// initialisation, counts, memory, flat layout, freezing, decay and checkpoint names follow.
struct Parameter {
  std::string name;  ///< key of model.safetensors: "blocks.0.attention.qkv"
  std::vector<int64_t> shape;
  Role role = Role::kProjection;
  Init init = Init::kNormal;
  int64_t block = -1;  ///< number of the block it belongs to; -1: none
  /// In the order of the rows; empty where Llama has no such tensor.
  std::vector<ExternalTensor> external;

  int64_t numel() const;
  /// Weight decay applies to matrices, not to vectors.
  bool decays() const { return shape.size() >= 2; }
  /// Whether a matrix product forms the gradient, which may then overwrite the buffer of the step
  /// before (ops/weight.h); all other gradients are added to zeros. A tied embedding is multiplied
  /// by as the head.
  bool multiplies = true;
  /// Whether finetuning with freeze_layers = n leaves it as it is: the embedding and the first n
  /// blocks. A tied head is the embedding.
  bool is_frozen(int64_t freeze_layers) const;
};

/// All parameters of a model in the order of its named_parameters(). `config.vocab_size` must be
/// resolved.
std::vector<Parameter> parameters(const ModelConfig& config);

int64_t parameter_count(const ModelConfig& config);

/// Training FLOPs per token, forward and backward: 6·(P − V·C of an untied embedding, which is
/// looked up) + 6·L·H·D·T; causal attention counted half.
double flops_per_token(const ModelConfig& config, int64_t context);

/// Throws ConfigError when heads, widths and rotated dimensions contradict each other: what
/// load_config checks, for configs that were made in code.
void check_model(const ModelConfig& config);

}  // namespace stablemask::nn
