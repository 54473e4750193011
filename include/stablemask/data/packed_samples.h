#pragma once

#include <cstdint>
#include <vector>

#include "stablemask/data/batch.h"
#include "stablemask/data/shards.h"

namespace stablemask {

/// Counts of samples packed for a context. A sample longer than T + 1 tokens is truncated at its
/// end; one that then has no training target is dropped.
struct PackingCounts {
  int64_t samples = 0;    ///< of the shards
  int64_t truncated = 0;  ///< of these, without those dropped
  int64_t dropped = 0;
  int64_t inputs = 0;   ///< positions that samples fill
  int64_t targets = 0;  ///< positions that are trained
};

/// Samples of shards packed into rows of T inputs, so that few positions are left over: best fit
/// decreasing, which takes the samples from the longest to the shortest and puts each into the row
/// with the least space that it fits into. A sample of n tokens takes n − 1 positions: its last
/// token is a target only. The packing is a function of the shards and T. All const members are
/// safe for concurrent use.
class PackedSamples {
 public:
  /// `shards` have samples (ShardInfo::has_samples) and outlive the object. Reads their training
  /// targets. Memory: 24 bytes a sample. Throws DataError.
  PackedSamples(std::vector<const Shard*> shards, int64_t context);

  int64_t rows() const { return static_cast<int64_t>(row_begins_.size()) - 1; }
  const PackingCounts& counts() const { return counts_; }
  /// Share of the rows' positions that samples fill; 0 without rows.
  double fill_rate() const;

  /// Writes row `id` of [0, rows()) to a row of `batch`, whose arrays have their sizes already,
  /// `document_start` too, and adds its targets to `valid_targets`. A sample is a document. The
  /// positions behind the last one are end-of-text, a document of their own, without targets.
  /// Throws the DataError of reading a damaged or shortened shard.
  void fill(int64_t id, int64_t row, Batch& batch) const;

 private:
  struct Sample {
    int64_t begin;  // in its shard
    int32_t shard;
    int32_t tokens;  // not truncated
  };

  void take_samples(int32_t shard);
  void pack();

  std::vector<const Shard*> shards_;
  int64_t context_;
  int64_t padding_ = 0;
  std::vector<Sample> samples_;  // in the order of the rows
  std::vector<int64_t> row_begins_ = {0};
  PackingCounts counts_;
};

}  // namespace stablemask
