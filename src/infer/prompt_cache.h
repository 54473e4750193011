#pragma once

#include <cstdint>
#include <vector>

#include "src/infer/scheduler.h"
#include "stablemask/nn/decoder.h"

namespace stablemask::infer {

/// Caches further tokens of the prompts of `sequences`, which are not all cached yet: on a GPU the
/// whole of several short ones of similar lengths in one pass, else a part of the first one.
/// Returns how many tokens, at least one and at most nn::Decoder::kLongestPrefill.
int64_t cache_prompts(nn::Decoder& decoder, const std::vector<SequencePtr>& sequences);

}  // namespace stablemask::infer
