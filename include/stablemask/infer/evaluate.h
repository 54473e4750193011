#pragma once

#include <cstdint>
#include <string>

#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/nn/model.h"

namespace stablemask {

/// Windows run over x = EOS, t_0, t_1, … and predict t_0, t_1, …, so the first token has EOS as its
/// context.
struct EvalOptions {
  int64_t window = 0;   ///< L ≥ 1, tokens a forward pass sees
  int64_t stride = 0;   ///< S in [1, L]; 0 or L: non-overlapping
  int64_t batch = 0;    ///< windows per forward; 0: chosen. The result does not depend on it
  int32_t eos_id = -1;  ///< the tokenizer's; required
  bool document_mask = false;
};

/// Σ NLL of a text with every count that a published perplexity was ever divided by.
struct Perplexity {
  double nll = 0;       ///< Σ over scored tokens, nats, fp64
  uint64_t tokens = 0;  ///< scored: all of the shard
  uint64_t words = 0, lines = 0, documents = 0, bytes = 0;
  uint64_t space_words = 0;  ///< pieces between single spaces of the stripped text; 0: not counted
  bool complete = true;      ///< false: stop_signal() ended it early, the figures are of a part

  double token() const;     ///< exp(nll / tokens)
  double word() const;      ///< exp(nll / word_count()): fairseq, Transformer-XL, ALiBi
  double lm_eval() const;   ///< exp(nll / lm_eval_count())
  double megatron() const;  ///< exp(nll/tokens · (tokens−1)/(space_words−1)); NaN: not counted
  double bits_per_byte() const;  ///< nll / (bytes · ln 2)

  /// words + lines: EOS of every line counts as a word. WikiText-103 test: 245,569.
  uint64_t word_count() const { return words + lines; }
  /// words + 2 per document: lm-eval splits each page by `re.split(r"\s+", page)`, and a page
  /// begins and ends with white space, which adds an empty string at both ends. WikiText-103 test:
  /// 241,211 words and 62 pages make the 241,335 that lm-eval divides by.
  uint64_t lm_eval_count() const { return words + 2 * (documents > 0 ? documents : 1); }
};

/// Scores every token of the shard once. Non-overlapping (S = L): block b predicts tokens
/// bL … bL+L−1 and its first input is EOS, the only context of its first token. Sliding (S < L):
/// window k sees x[kS … kS+L−1] and scores its last S predictions, the first window all of them;
/// the last window of either kind is short and runs at its own length. Leaves the model in
/// evaluation mode. Polls stop_signal(). Throws ConfigError on a window, stride or batch that makes
/// no sense, DataError on an id outside the vocabulary, OutOfMemoryError.
Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options);

/// What word-level figures of a subword model rest on: the shard's tokens decode to the original
/// text, byte for byte.
struct TextAudit {
  bool round_trips = false;  ///< the decoded text has the shard's text_sha256
  uint64_t space_words = 0;  ///< Megatron-LM's count: len(text.strip().split(" "))
};
/// Decodes the shard line by line, in constant memory.
TextAudit audit_text(const Shard& shard, const Tokenizer& tokenizer);

/// The name of the WikiText split whose SHA-256 the shard's text has ("WikiText-103 test"); "" when
/// it is none. Throws DataError when a recognised text does not have its golden words + lines (test
/// 245,569; valid 217,646): then something was lost or counted differently.
std::string recognise_text(const ShardInfo& info);

/// Unigram model with add-one smoothing, p(w) = (count_train(w) + 1) / (tokens_train + V), on the
/// shard: what a language model must beat. Both shards must be of one tokenizer (else DataError).
Perplexity unigram_baseline(const Shard& train, const Shard& shard);

/// Σ NLL and one line per convention with its denominator. `convention`: "all", "token", "word",
/// "lm-eval", "megatron" or "bpb" (else ConfigError).
std::string perplexity_report(const Perplexity& result, const std::string& convention = "all");
/// One object: nll, every count, every figure (null where not counted).
std::string perplexity_json(const Perplexity& result);

}  // namespace stablemask
