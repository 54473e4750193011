#pragma once

#include <cstdint>
#include <vector>

namespace stablemask {

/// One micro-batch in host memory, row-major [B, T].
struct Batch {
  int64_t rows = 0;     ///< B
  int64_t columns = 0;  ///< T
  std::vector<int64_t> tokens;
  std::vector<int64_t> targets;  ///< next token; kIgnoreTarget where there is none
  std::vector<int64_t>
      document_start;  ///< column of the first token of the token's document; empty: off
  std::vector<int64_t> sequence_ids;  ///< [B] which sequences of the corpus these are
  int64_t valid_targets = 0;
};

constexpr int64_t kIgnoreTarget = -100;

}  // namespace stablemask
