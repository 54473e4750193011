#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "stablemask/data/shards.h"
#include "stablemask/nn/model.h"

namespace stablemask {

// What the attention heads and the residual stream of a model do on a text. Everything is computed
// from the queries and keys of a forward pass, one head and at most 1,024 rows of its scores at a
// time, in the dtype of the model, which should be fp32.

struct InspectOptions {
  int64_t window = 0;          ///< T ≥ 1, tokens of a window
  int64_t windows = 16;        ///< ≥ 1; fewer when the text has fewer
  int32_t eos_id = -1;         ///< EOS of the tokenizer, the first input of every window; required
  bool document_mask = false;  ///< attend within a document only
  /// Called after each layer with the tokens done and their total: a layer of a window counts as
  /// T / layers tokens.
  std::function<void(int64_t done, int64_t total)> progress = {};
};

/// One attention head. Vectors are [T], by position in the window, means over the windows. The
/// weights of row i are w_ij = exp(a_ij − lse'_i) with lse'_i = log(Σ_j exp a_ij + S_i); they sum
/// to 1 − ρ_i (formulas: ops/attention.h).
struct HeadStatistics {
  std::optional<double> gamma, p_base;  ///< without StableMask none
  /// log S of the first window's rows; −inf: no pseudo slots; +inf: infinitely many of equal weight
  /// (gamma 0), which take all of it. Empty without StableMask.
  std::vector<double> log_mass;
  std::vector<double> mask_ratio;  ///< ρ, weight that pseudo slots take and that is thrown away
  /// −Σ p log p in nats of the normalised weights p = w / (1 − ρ).
  std::vector<double> entropy;
  /// w of the first token of the window, with document_mask of the row's document. 0 where
  /// model.window hides it.
  std::vector<double> first_token;
  std::vector<double> heaviest_token;  ///< max_j w_ij
};

/// The vectors x [C] of the residual stream at one point, over all tokens of all windows.
struct HiddenStatistics {
  std::vector<double> norm;       ///< [T], ‖x‖₂ by position, mean over the windows
  double norm_max = 0;            ///< largest ‖x‖₂
  int64_t norm_max_position = 0;  ///< its position in its window
  double channel_share = 0;       ///< mean over tokens of max_c x_c² / ‖x‖²; 0 for x = 0
  double channel_share_max = 0;   ///< largest over tokens
  int64_t top_channel = 0;        ///< channel with the largest Σ x_c² over tokens
  double top_channel_share = 0;   ///< its share of Σ ‖x‖²
};

struct Inspection {
  int64_t window = 0, windows = 0;
  std::vector<std::vector<HeadStatistics>> heads;  ///< [layers][H]
  /// [layers + 2]: before block 0, after each block, after the final norm.
  std::vector<HiddenStatistics> hidden;
};

/// Runs the model on `windows` windows of T tokens that do not overlap, spread evenly over the
/// text, and leaves it in evaluation mode. Inputs are those of evaluate() with stride = window.
/// Throws DataError when the text is shorter than one window or has ids outside the vocabulary,
/// ConfigError for an option out of range, NonFiniteError when a statistic is not finite, Stopped
/// on a stop signal, OutOfMemoryError.
Inspection inspect(nn::Transformer& model, const Shard& shard, const InspectOptions& options);

/// The first `count` input tokens of the text's first window: EOS, then the text. Fewer when the
/// text is shorter.
std::vector<int64_t> first_inputs(const Shard& shard, int32_t eos_id, int64_t count);

/// Weights of one head on T tokens, fp32 in host memory.
struct AttentionMap {
  int64_t layer = 0, head = 0;
  /// [T,T]. Row i, j ≤ i: weight w_ij of token j. j > i: weight exp(P_ij − lse'_i) of the pseudo
  /// slot at column j, which is thrown away.
  at::Tensor weights;
  /// [T]: weight of the row's pseudo slots at columns ≥ T. A row of `weights` and this sum to 1.
  at::Tensor rest;
};

/// Calls `receive` for every layer and head, in this order, with the attention of `tokens` [T], at
/// least one, without a document mask. Throws as `inspect` does; ConfigError for an id outside the
/// vocabulary.
void attention_maps(nn::Transformer& model, const std::vector<int64_t>& tokens,
                    const std::function<void(const AttentionMap&)>& receive);

}  // namespace stablemask
