#pragma once

#include <cstdint>
#include <string>

namespace stablemask {

/// Writes a synthetic corpus in WikiText format to `folder`: wiki.train.tokens of at least
/// `train_bytes` bytes, wiki.valid.tokens and wiki.test.tokens of a twentieth each. Its articles on
/// invented towns, rivers and people repeat the same facts. Same seed and size, same files. Throws
/// DataError, Stopped.
void synthesize_corpus(const std::string& folder, uint64_t seed, uint64_t train_bytes);

}  // namespace stablemask
