#pragma once

#include <cstdint>
#include <vector>

namespace stablemask {

/// Target of positions that the loss leaves out.
constexpr int64_t kIgnoreTarget = -100;

/// One micro-batch in host memory: B sequences of T tokens, all arrays row-major.
struct Batch {
  int64_t rows = 0;                     ///< B
  int64_t columns = 0;                  ///< T
  std::vector<int64_t> tokens;          ///< [B, T] token ids
  std::vector<int64_t> targets;         ///< [B, T] id of the next token, or kIgnoreTarget
  std::vector<int64_t> document_start;  ///< [B, T] column where the token's document starts in its
                                        ///< row, 0 if before it; empty: no document masking
  std::vector<int64_t> sequence_ids;    ///< [B] index of each sequence in the corpus
  int64_t valid_targets = 0;            ///< number of targets that are not kIgnoreTarget
};

}  // namespace stablemask
