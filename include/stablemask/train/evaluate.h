#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "stablemask/data/shards.h"
#include "stablemask/nn/model.h"

namespace stablemask {

struct EvalOptions {
  int64_t window = 0;  ///< L
  int64_t stride = 0;  ///< S ≤ L; L: non-overlapping
  int64_t batch = 0;   ///< windows per forward; 0: chosen. The result does not depend on it
  bool document_mask = false;
};

/// Every token of the shard scored once. Non-overlapping: a block's first token has EOS as its only
/// context. Sliding: windows of L tokens, the last S scored (the first window scores all).
struct Perplexity {
  double nll = 0;  ///< Σ over scored tokens, nats, fp64
  uint64_t tokens = 0, words = 0, lines = 0, documents = 0, bytes = 0;
  double token() const;          ///< exp(nll / tokens)
  double word() const;           ///< exp(nll / (words + lines)): EOS of every line counts as a word
  double lm_eval() const;        ///< exp(nll / words)
  double bits_per_byte() const;  ///< nll / (bytes · ln 2)
};

Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options);

/// The printed report; `convention` "", "token", "word", "lm-eval", "bpb" picks lines.
std::string perplexity_report(const Perplexity& result, const std::string& convention);
std::string perplexity_json(const Perplexity& result);

}  // namespace stablemask
