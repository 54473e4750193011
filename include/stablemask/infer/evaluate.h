#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "stablemask/config/config.h"
#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/dist/group.h"
#include "stablemask/infer/perplexity.h"
#include "stablemask/nn/model.h"

namespace stablemask {

/// How a shard is cut into windows. The model reads x = EOS, t_0, t_1, … and predicts t_0, t_1, …:
/// the only context of the first token is EOS, or another id that begins a text.
struct EvalOptions {
  int64_t window = 0;    ///< L ≥ 1, tokens of a forward pass
  int64_t stride = 0;    ///< S in [1, L], tokens scored per window; 0: L, no overlap
  int64_t batch = 0;     ///< windows of a forward pass; 0: chosen. Does not change the result
  int64_t tokens = 0;    ///< score the first ones only, of samples the first packed windows of
                         ///< so many positions; 0: all. Counts of words, lines, documents and
                         ///< bytes of a part are not known: 0
  int32_t eos_id = -1;   ///< start_id() of the tokenizer; required
  bool lossless = true;  ///< the tokenizer is lossless: see Perplexity::text_known
  bool document_mask = false;  ///< attend within a document only
  /// Called after each forward pass with the number of scored tokens and their total.
  std::function<void(int64_t scored, int64_t total)> progress = {};
  /// The processes that share the work; null: this process alone. All of them pass equal options,
  /// shards and weights.
  std::shared_ptr<dist::Group> group = {};
};

/// The options that a config asks for: its `eval` section (window 0: train.context; stride 0: the
/// window) and data.document_mask; and the properties of the tokenizer.
EvalOptions eval_options(const Config& config, const Tokenizer& tokenizer);
/// The same for a lossless tokenizer with this EOS.
EvalOptions eval_options(const Config& config, int32_t eos_id);

/// Scores every token of the shard once and leaves the model in evaluation mode.
///  - S = L: window b predicts tokens bL … bL+L−1; its first input is EOS.
///  - S < L: window k reads x[kS … kS+L−1] and scores its last S predictions, the first window all
///    of them.
/// A shard of samples is packed into windows of L tokens (PackedSamples), with attention within a
/// sample whatever `document_mask` says; its training targets alone are scored, and S plays no
/// part. The last window of a text may be shorter than L. On a stop signal it returns what it has
/// scored so far with `complete` = false. Several processes take the forward passes in turn; every
/// process gets the result that one process alone would compute, bit for bit on equal devices, and
/// all of them end early when one is stopped. Throws ConfigError for a window, stride or batch out
/// of range, DataError for a token id outside the vocabulary, OutOfMemoryError.
Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options);

}  // namespace stablemask
