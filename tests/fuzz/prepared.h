#pragma once

#include <string>
#include <string_view>

#include "stablemask/data/prepare.h"

namespace stablemask::fuzz {

/// A shard that was made from `input`.
struct Prepared {
  std::string text;  ///< decoded from its tokens
  ShardInfo info;
};

/// prepare_shard on `input` in memory; checks that the shard is sound, and that its counts are
/// those of its text. Throws the DataError of a refused input, after a check that no file is left.
Prepared prepare(std::string_view input, PrepareOptions options);

}  // namespace stablemask::fuzz
