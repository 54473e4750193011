#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/nn/model.h"

namespace stablemask {

/// Continues `prompt` (≥ 1 id) with a KV cache, one id at a time through `emit` (return false to
/// stop); returns the new ids. Deterministic in (weights, prompt, config.seed). Polls
/// stop_signal(). Throws ConfigError when the model's mask length is "sequence".
std::vector<int32_t> generate(nn::Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerateConfig& config, int32_t eos_id = -1,
                              const std::function<bool(int32_t)>& emit = {});

/// The id drawn from logits fp32 [V] with temperature (0: argmax, lowest id wins ties), top-k,
/// top-p; u in [0, 1).
int32_t sample_token(const float* logits, int64_t vocab, const GenerateConfig& config, double u);

}  // namespace stablemask
