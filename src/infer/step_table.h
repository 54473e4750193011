#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "src/infer/scheduler.h"
#include "stablemask/ops/sampling.h"

namespace stablemask::infer {

/// What a decoding step reads about its sequences: one column for each of the batch's slots, one
/// row for each value, int64 or the bits of an fp64, so that the host sends all of it in one copy.
/// A step advances positions and numbers of draws itself; the host sends the table again only when
/// the sequences change.
class StepTable {
 public:
  /// For at most `slots` sequences at a time, which use rows 0 … slots − 1 of the cache.
  StepTable(int64_t slots, at::Device device);

  /// Enqueues the values of `sequences`; slots up to `batch` that are left get none. Sequences that
  /// were in the table before keep the id that is on the device.
  void set(const std::vector<SequencePtr>& sequences, int64_t batch);
  /// Whether the table holds exactly these, in this order.
  bool holds(const std::vector<SequencePtr>& sequences, int64_t batch) const;

  at::Tensor ids(int64_t batch) const { return ids_.narrow(0, 0, batch); }  ///< to be cached next
  at::Tensor positions(int64_t batch) const { return row(kPosition, batch); }
  at::Tensor rows(int64_t batch) const { return row(kCacheRow, batch); }
  /// Without `seen`.
  ops::Sampling sampling(int64_t batch) const;
  /// After a step has drawn `sampled` int64 [batch]: these are the next ids, one position later.
  void advance(const at::Tensor& sampled);

 private:
  /// The first two are advanced together.
  enum Row : int64_t {
    kPosition,
    kDrawn,
    kActive,
    kCacheRow,
    kSeed,
    kTopK,
    kTemperature,
    kTopP,
    kMinP,
    kPenalty,
    kId,
    kSource,
    kRows
  };
  at::Tensor row(Row which, int64_t batch) const { return table_[which].narrow(0, 0, batch); }
  at::Tensor real_row(Row which, int64_t batch) const;
  void fill(at::Tensor& host, const std::vector<SequencePtr>& sequences) const;

  at::Tensor table_;    ///< int64 [kRows, slots]
  at::Tensor ids_;      ///< int64 [slots]
  at::Tensor host_[2];  ///< the table in host memory; in turn, as a copy may be under way
  int64_t turn_ = 0, batch_ = 0;
  std::vector<SequencePtr> sequences_;
};

}  // namespace stablemask::infer
