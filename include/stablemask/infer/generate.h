#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/nn/model.h"

namespace stablemask {

struct GenerateOptions {
  /// Number of ids that the tokenizer has. A model's vocabulary may be padded beyond it; padding
  /// ids are never generated. 0: every id of the model.
  int64_t vocab_size = 0;
  int32_t stop_id = -1;  ///< generation ends after this id; -1: none
  /// Called with each id as soon as it is drawn; false ends the generation.
  std::function<bool(int32_t)> emit = {};
};

/// The ids that a model continues or reads as the text's start: EOS, then the text. In training, a
/// line starts after the EOS of the line before. Throws DataError "WHAT: …" for a text that cannot
/// be encoded.
std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text,
                                const std::string& what);

/// Continues `prompt` (at least 1 id) by up to config.max_tokens ids with a KV cache and returns
/// the new ids. A function of the weights, the prompt and config.seed. On a stop signal it returns
/// the ids drawn so far. Throws ConfigError for a config value out of range, an empty prompt, or a
/// model that cannot run with a cache (mask length "sequence", log_length_scale), NonFiniteError
/// for logits that are not finite, OutOfMemoryError.
std::vector<int32_t> generate(nn::Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerateConfig& config, const GenerateOptions& options = {});

/// Draws an id from fp32 logits. Temperature 0 takes the largest logit, the lowest id among equal
/// ones. Otherwise: softmax(logits / temperature), restricted to the top_k likeliest ids (0: all),
/// then to the fewest likeliest ids whose probabilities sum to top_p. `u` in [0, 1) selects the id.
/// Throws NonFiniteError when a logit is not finite.
int32_t sample_token(std::span<const float> logits, const GenerateConfig& config, double u);

}  // namespace stablemask
