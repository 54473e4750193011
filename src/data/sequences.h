#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "stablemask/data/batch.h"
#include "stablemask/data/shards.h"

namespace stablemask {

/// The training sequences of one list of shards, whose tokens are concatenated and cut into
/// count() sequences of T inputs, each with the token after it as the last target; the remaining
/// tokens are dropped. All const members are safe for concurrent use.
class Sequences {
 public:
  /// Throws DataError when there is no shard, when tokenizers or vocabularies differ, or when the
  /// tokens do not fill one sequence. `context`: T, at least 1. `document_mask`: fill
  /// Batch::document_start.
  Sequences(std::vector<std::shared_ptr<const Shard>> shards, int64_t context, bool document_mask);

  int64_t count() const { return count_; }
  /// Whether `fill` writes Batch::document_start.
  bool has_document_starts() const { return document_mask_; }
  /// Writes sequence `id` of [0, count()) to a row of `batch`, whose arrays have their sizes
  /// already, and adds its targets to `valid_targets`. `sequence_ids` is the caller's. Throws the
  /// DataError of reading a damaged or shortened shard.
  void fill(int64_t id, int64_t row, Batch& batch) const;

 private:
  void read(int64_t begin, int64_t count, int64_t* out) const;
  void read_document_columns(int64_t begin, int64_t* out) const;

  std::vector<std::shared_ptr<const Shard>> shards_;
  std::vector<int64_t> begins_;           // of the shards, in tokens
  std::vector<int64_t> document_starts_;  // in tokens of all shards
  int64_t context_;
  bool document_mask_;
  int64_t tokens_ = 0;
  int64_t count_ = 0;
};

}  // namespace stablemask
