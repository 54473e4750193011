#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "stablemask/data/batch.h"
#include "stablemask/data/shards.h"

namespace stablemask {

struct LoaderOptions {
  int64_t context = 1024;
  int64_t batch = 32;  ///< sequences per optimizer step
  int64_t micro_batch = 32;
  uint64_t seed = 0;
  bool document_mask = false;
  int64_t prefetch = 4;  ///< micro-batches prepared by a background thread; 0: none
};

/// The shards' tokens joined and cut into sequences of T tokens plus the following token as the
/// last target; the tail that fills no sequence is left out. Sequence g of the run (g = step·batch
/// + row) is entry g mod n of epoch g / n's permutation, a pure function of (seed, epoch, index)
/// computed without storing the permutation. So step k's batches depend on nothing but (shards,
/// options, k).
class Loader {
 public:
  Loader(std::vector<std::shared_ptr<const Shard>> shards, const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  int64_t sequences_per_epoch() const;
  int64_t micro_batches_per_step() const;
  /// Next call of `next` returns micro-batch 0 of this step.
  void seek(int64_t step);
  Batch next();

  /// The permutation: which sequence stands at `index` of `epoch`, for n sequences.
  static int64_t sequence_at(uint64_t seed, int64_t epoch, int64_t index, int64_t n);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stablemask
