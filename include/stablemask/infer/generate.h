#pragma once

#include <cstdint>
#include <functional>
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

/// The ids that a model continues or reads as the text's start: start_id(), then the text. In
/// training, a line of a lossless tokenizer starts after the EOS of the line before. Throws
/// DataError "WHAT: …" for a text that cannot be encoded.
std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text,
                                const std::string& what);

/// Continues `prompt` (at least 1 id) by up to config.max_tokens ids with a KV cache and returns
/// the new ids. A function of the weights, the prompt and config.seed. On a stop signal it returns
/// the ids drawn so far. Throws ConfigError for a config value out of range, an empty prompt, or a
/// model that cannot run with a cache (mask length "sequence", log_length_scale), NonFiniteError
/// for logits that are not finite, OutOfMemoryError.
std::vector<int32_t> generate(nn::Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerateConfig& config, const GenerateOptions& options = {});

/// Draws id number `drawn` (from 0) of a text from logits [V], fp32 or bf16, among ids below
/// `vocabulary`, by ops::sample. `seen`: uint8 [V] on the logits' device, 1 for the ids of the
/// prompt and the text so far; the drawn id is marked. Undefined: no repetition penalty. Throws
/// NonFiniteError that names the first logit that is not finite.
int32_t sample_token(const at::Tensor& logits, int64_t vocabulary, const GenerateConfig& config,
                     int64_t drawn, const at::Tensor& seen = {});

}  // namespace stablemask
