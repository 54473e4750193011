#pragma once

#include <cstdint>
#include <string>

#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask::commands {

/// The ids that sample_preview shows by a mark or a name.
std::string preview_legend(const Tokenizer& tokenizer);

/// Sample `number` of a shard of samples, from 0, for reading: a line of counts, then its text in
/// lines that begin with "masked", "trained" or "cut", the last for what a context of `context`
/// tokens cuts off; 0: nothing.
std::string sample_preview(const Shard& shard, const Tokenizer& tokenizer, int64_t number,
                           int64_t context);

/// What packing for `context` makes of a shard of samples, one line.
std::string packing_text(const Shard& shard, int64_t context);

}  // namespace stablemask::commands
