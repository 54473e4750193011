#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "stablemask/data/batch.h"
#include "stablemask/data/loader.h"
#include "stablemask/data/packed_samples.h"
#include "stablemask/data/shards.h"

namespace stablemask {

/// The training sequences of one list of shards. First those of the shards of text: their tokens
/// are concatenated and cut into sequences of T inputs, each with the token after it as the last
/// target; the remaining tokens are dropped. Then those of the shards of samples, all packed
/// together (PackedSamples). All const members are safe for concurrent use.
class Sequences {
 public:
  /// Throws DataError when there is no shard or when tokenizers or vocabularies differ. `context`:
  /// T, at least 1. `document_mask`: fill Batch::document_start, which is done in any case when
  /// there are samples; it is then 0 in sequences of text.
  Sequences(std::vector<std::shared_ptr<const Shard>> shards, int64_t context, bool document_mask);

  /// Throws DataError when the tokens of text do not fill one sequence, or when the context cuts
  /// off the training targets of all samples.
  void require_sequences() const;

  SequenceCounts counts() const;
  int64_t count() const { return text_count_ + (samples_ ? samples_->rows() : 0); }
  /// Whether `fill` writes Batch::document_start.
  bool has_document_starts() const { return document_mask_ || samples_; }
  /// Writes sequence `id` of [0, count()) to a row of `batch`, whose arrays have their sizes
  /// already, and adds its targets to `valid_targets`. `sequence_ids` is the caller's. Throws the
  /// DataError of reading a damaged or shortened shard.
  void fill(int64_t id, int64_t row, Batch& batch) const;

 private:
  void add_text(const Shard& shard);
  void read(int64_t begin, int64_t count, int64_t* out) const;
  void read_document_columns(int64_t begin, int64_t* out) const;

  std::vector<std::shared_ptr<const Shard>> shards_;
  std::vector<const Shard*> texts_;
  std::vector<int64_t> begins_;           // of the texts, in tokens
  std::vector<int64_t> document_starts_;  // in tokens of all texts
  std::unique_ptr<const PackedSamples> samples_;
  int64_t context_;
  bool document_mask_;
  int64_t tokens_ = 0;  // of the texts
  int64_t text_count_ = 0;
};

}  // namespace stablemask
