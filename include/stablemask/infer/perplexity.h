#pragma once

#include <cstdint>
#include <string>

#include "stablemask/data/packed_samples.h"
#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask {

/// Sum of the negative log-likelihoods (NLL) of a text, and the counts that published perplexities
/// divide it by. docs/evaluation.md explains the conventions.
struct Perplexity {
  double nll = 0;       ///< sum over the scored tokens, in nats, added in fp64
  uint64_t tokens = 0;  ///< scored tokens: every token of the shard
  uint64_t words = 0;   ///< separated by white space, line ends not counted
  uint64_t lines = 0;
  uint64_t documents = 0;
  uint64_t bytes = 0;
  uint64_t space_words = 0;  ///< TextAudit::space_words; 0: not counted
  PackingCounts samples;     ///< of a shard of samples, whose targets alone are scored
  /// False for a tokenizer that may lose bytes and for ids of an unknown text: the tokens need not
  /// hold all of the text, so only figures per token are defined.
  bool text_known = true;
  bool complete = true;  ///< false: a stop signal ended the evaluation before the last window

  /// Only `tokens` counts what is scored, so that token() is the only figure that is defined.
  bool of_samples() const { return samples.samples > 0; }
  /// Whether figures that divide by words or bytes are defined.
  bool has_text() const { return text_known && !of_samples(); }
  // NaN where a denominator is 0, in a text without words for example.
  double token() const;    ///< exp(nll / tokens)
  double word() const;     ///< exp(nll / word_count()): fairseq, Transformer-XL, ALiBi
  double lm_eval() const;  ///< exp(nll / lm_eval_count())
  double megatron() const;  ///< exp(nll/tokens · (tokens−1)/(space_words−1)); NaN also: not counted
  double bits_per_byte() const;   ///< nll / (bytes · ln 2)
  double bits_per_token() const;  ///< nll / (tokens · ln 2)

  /// words + lines: the end of each line counts as one word. WikiText-103 test: 245,569.
  uint64_t word_count() const { return words + lines; }
  /// words + 2 per document: lm-eval splits each page by `re.split(r"\s+", page)`; a page begins
  /// and ends with white space, which adds an empty string at both ends. WikiText-103 test: 241,211
  /// words and 62 pages make 241,335.
  uint64_t lm_eval_count() const { return words + 2 * (documents > 0 ? documents : 1); }
};

/// Whether the tokens of a shard are its text: the condition for word-level figures of a model of
/// subwords.
struct TextAudit {
  bool round_trips = false;  ///< the decoded tokens have the SHA-256 of the original text
  uint64_t space_words = 0;  ///< Megatron-LM's count, len(text.strip().split(" "))
};
/// Decodes the shard line by line, in constant memory. Throws Stopped on a stop signal.
TextAudit audit_text(const Shard& shard, const Tokenizer& tokenizer);

/// "WikiText-103 test" and the like when the shard's text has the SHA-256 of that split, else "".
/// Throws DataError when the text is one of them but words + lines differ from the published count
/// (test 245,569; validation 217,646).
std::string recognise_text(const ShardInfo& info);

/// NLL of `shard` under unigram frequencies with add-one smoothing, p(w) = (count of w in `train` +
/// 1) / (tokens of `train` + V): a baseline without any context. Throws DataError when the shards
/// were made with different tokenizers or hold an id outside the vocabulary, Stopped on a stop
/// signal.
Perplexity unigram_baseline(const Shard& train, const Shard& shard);

/// The NLL and one line per convention with its denominator. `convention`: "all", "token", "word",
/// "lm-eval", "megatron" or "bpb" (else ConfigError). "all" leaves "megatron" out where the words
/// were not counted; for samples only "token" is defined, and where the text is not known the
/// figures per token.
std::string perplexity_report(const Perplexity& result, const std::string& convention = "all");
/// A figure with four digits after the point; "-": it is not defined.
std::string figure_text(double value);
/// One JSON object with the NLL, every count and every figure; null where a figure is not defined.
/// For samples also "samples", "samples_truncated" and "samples_dropped".
std::string perplexity_json(const Perplexity& result);

}  // namespace stablemask
