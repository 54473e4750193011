#pragma once

#include <cstdint>
#include <string>

namespace stablemask {

/// Writes a deterministic, invented, self-consistent encyclopedia in WikiText format (towns,
/// rivers, people; facts recur across articles): wiki.train.tokens, wiki.valid.tokens,
/// wiki.test.tokens.
void synthesize_corpus(const std::string& folder, uint64_t seed, uint64_t train_bytes);

}  // namespace stablemask
