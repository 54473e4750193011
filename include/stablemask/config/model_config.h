#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

/// Section "model": the Transformer. Ranges and descriptions of every field: docs/config.md.
namespace stablemask {

enum class Position { kRope, kAlibi, kNone, kLearned };
enum class FfnKind {
  kSwiglu,
  kGelu,      ///< exact
  kGeluTanh,  ///< tanh approximation
};
enum class NormKind { kRms, kLayer };
enum class BiasKind {
  kNone,
  kQkv,  ///< of the projection to queries, keys and values
  kAll,  ///< of all four projections of a block
};
enum class AttentionBackend { kAuto, kReference, kFlash };

/// One value shared by all heads, or one value per head.
struct PerHead {
  std::vector<double> values;  ///< size 1 or H
};

/// gamma, the decay of the pseudo scores per position.
struct GammaSpec {
  enum class Kind {
    kAuto,    ///< by the position encoding; resolve() replaces it by kSlopes or kValue
    kSlopes,  ///< the ALiBi slope of each head, the paper's form
    kValue,   ///< `value`
  };
  Kind kind = Kind::kAuto;
  PerHead value;  ///< kValue only
};

/// Pseudo mass of the rows at and beyond a fixed mask length N.
enum class BeyondMask {
  kInfinite,  ///< that of N → ∞
  kNone,      ///< none: plain causal rows
};

/// N, the mask length: row i has pseudo slots at positions i+1 … N−1.
struct MaskLengthSpec {
  enum class Kind {
    kContext,   ///< train.context; resolve() replaces it by kFixed
    kFixed,     ///< `length`
    kInfinite,  ///< N → ∞
    kSequence,  ///< the length of each input sequence
  };
  Kind kind = Kind::kContext;
  int64_t length = 0;  ///< kFixed only
};

/// How RoPE is changed for contexts longer than those that a model was trained on. Formulas:
/// nn/rope_tables.h.
struct RopeScaling {
  enum class Kind { kLinear, kLlama3, kYarn };
  Kind kind = Kind::kLinear;
  double factor = 1.0;           ///< longest context / original context; 1: no change
  int64_t original_context = 0;  ///< llama3, yarn: tokens of the context before the change
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< llama3
  double beta_fast = 32.0, beta_slow = 1.0;              ///< yarn
  double attention_factor = 0.0;  ///< yarn: multiplies cos and sin; 0: 0.1 ln(factor) + 1
};

struct StableMaskConfig {
  bool enabled = true;
  GammaSpec gamma;
  PerHead p_base{{0.0}};
  MaskLengthSpec mask_length;
  BeyondMask beyond = BeyondMask::kInfinite;
  bool learnable = false;
};

/// Section "lora": low-rank adapters beside the projections of every block. It is part of the model
/// because the adapters are parameters of it.
struct LoraConfig {
  int64_t rank = 0;  ///< 0: no adapters
  double alpha = 16.0;
  double dropout = 0.0;
  std::vector<std::string> targets{"qkv", "proj", "up", "down"};

  /// Whether the projection of this name has an adapter.
  bool adapts(std::string_view projection) const {
    return rank > 0 && std::find(targets.begin(), targets.end(), projection) != targets.end();
  }
};

struct ModelConfig {
  std::string preset;  ///< "" or a name of the preset table, which then sets the five sizes below
  int64_t vocab_size = 0;  ///< 0: the tokenizer's
  int64_t layers = 6;
  int64_t channels = 512;
  int64_t heads = 8;
  int64_t kv_heads = 0;  ///< 0: heads
  int64_t head_dim = 0;  ///< 0: channels / heads
  int64_t ffn_hidden = 1536;
  FfnKind ffn = FfnKind::kSwiglu;
  NormKind norm = NormKind::kRms;
  double norm_eps = 1e-5;
  bool qk_norm = false;
  BiasKind bias = BiasKind::kNone;
  bool parallel_residual = false;
  bool tied_head = false;
  Position position = Position::kRope;
  int64_t learned_positions = 0;  ///< kLearned only; 0: train.context, by resolve()
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  int64_t rope_dims = 0;  ///< 0: head_dim
  int64_t window = 0;     ///< keys that a query attends to, its own position included; 0: all
  bool log_length_scale = false;
  double init_std = 0.02;
  AttentionBackend attention = AttentionBackend::kAuto;
  StableMaskConfig stable_mask;
  LoraConfig lora;

  int64_t resolved_kv_heads() const { return kv_heads ? kv_heads : heads; }
  int64_t resolved_head_dim() const { return head_dim ? head_dim : channels / heads; }
  int64_t resolved_rope_dims() const { return rope_dims ? rope_dims : resolved_head_dim(); }
  /// gamma, kAuto replaced: 1 with RoPE, else the slopes.
  GammaSpec resolved_gamma() const {
    if (stable_mask.gamma.kind != GammaSpec::Kind::kAuto) return stable_mask.gamma;
    if (position == Position::kRope) return {GammaSpec::Kind::kValue, {{1.0}}};
    return {GammaSpec::Kind::kSlopes, {}};
  }
};

}  // namespace stablemask
