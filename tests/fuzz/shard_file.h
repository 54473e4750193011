#pragma once

#include <string>
#include <string_view>

#include "tests/fuzz/harness.h"

namespace stablemask::fuzz {

/// Hashes of the payload and of the header put into a shard file of at least 256 bytes.
void seal_shard(std::string& file, bool payload, bool header);

/// A shard file described by 12 bytes of an input, in the layout of src/data/shards.cpp, with its
/// hashes. Most descriptions give a sound one. `contents` are repeated to make up tokens and
/// document starts.
std::string make_shard(Numbers& description, std::string_view contents);

}  // namespace stablemask::fuzz
