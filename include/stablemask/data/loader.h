#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "stablemask/data/batch.h"
#include "stablemask/data/packed_samples.h"
#include "stablemask/data/shards.h"

namespace stablemask {

struct LoaderOptions {
  int64_t context = 1024;    ///< T, tokens per sequence
  int64_t batch = 32;        ///< sequences per optimizer step, of all processes
  int64_t micro_batch = 32;  ///< B, sequences per micro-batch; B·size divides `batch`; 0:
                             ///< the process's share in one
  uint64_t seed = 0;         ///< of the order of sequences
  /// One for each shard makes a mixture of them; empty: one set of all shards.
  std::vector<double> weights = {};
  bool document_mask = false;  ///< fill Batch::document_start
  int64_t prefetch = 4;  ///< micro-batches prepared ahead by a background thread; 0: no thread
  int64_t rank = 0, size = 1;  ///< of this process among those that share a batch
};

/// What an epoch of shards consists of.
struct SequenceCounts {
  int64_t text = 0;       ///< sequences cut from text
  int64_t packed = 0;     ///< sequences of samples
  PackingCounts samples;  ///< of all shards of samples
  double fill_rate = 0;   ///< share of the positions of packed sequences that samples fill

  int64_t total() const { return text + packed; }
};
/// A set of sequences, and how many slots of a run it takes.
struct SetSize {
  SequenceCounts sequences;
  int64_t taken = 0;
};
/// All sets together.
SequenceCounts sum_of(const std::vector<SetSize>& sets);

/// The sets of sequences of a run: one of all shards, or in a mixture one of each. Reads the
/// training targets of samples and packs them, which takes seconds for millions of samples.
class SequenceSets {
 public:
  /// Of `options` context, weights and document_mask. Throws DataError when there is no shard and
  /// when tokenizers or vocabularies differ, ConfigError for a bad context or number of weights.
  SequenceSets(std::vector<std::shared_ptr<const Shard>> shards, const LoaderOptions& options);
  ~SequenceSets();
  SequenceSets(const SequenceSets&) = delete;
  SequenceSets& operator=(const SequenceSets&) = delete;

  /// `taken` of the first `slots` sequences of a run with this seed; 0 if a set is empty, which a
  /// Loader refuses.
  std::vector<SetSize> sizes(int64_t slots, uint64_t seed) const;

 private:
  friend class Loader;
  struct State;
  std::unique_ptr<const State> state_;
};

/// Training batches from token shards. The tokens of all shards of text are concatenated and cut
/// into sequences of T inputs, each with the token after it as the last target; the remaining
/// tokens are dropped. Samples are packed into further sequences (PackedSamples); with them, every
/// batch has document_start. Of these n sequences, sequence g of the run (g = step·batch + row) is
/// entry g mod n of the permutation of epoch g / n, which is a function of (seed, epoch, index) and
/// is not stored. So the batches of a step depend only on the shards, the options and the step's
/// number. Of several processes each takes the micro-batches whose number in the run, modulo size,
/// is its rank.
///
/// In a mixture each shard is a set of its own, which goes through the permutations of its own
/// sequences; its share of every stretch of the run is that of its weight (sequence_order.h). An
/// epoch of the run is then as many sequences as all sets have.
class Loader {
 public:
  /// Throws DataError when there is no shard, when tokenizers or vocabularies differ, when the
  /// tokens of text do not fill one sequence, or when the context cuts off the training targets of
  /// all samples; ConfigError for bad options.
  Loader(std::vector<std::shared_ptr<const Shard>> shards, const LoaderOptions& options);
  /// Context, weights and document_mask are those of the sets.
  Loader(std::shared_ptr<const SequenceSets> sets, const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  int64_t sequences_per_epoch() const;
  int64_t micro_batches_per_step() const;  ///< of this process
  /// The next call of `next` returns this process's first micro-batch of this step (steps count
  /// from 0). Throws ConfigError for a negative step and for one whose sequences 63 bits cannot
  /// count.
  void seek(int64_t step);
  /// The next micro-batch. Throws the DataError of reading a damaged or shortened shard, also when
  /// the background thread met it, and again until `seek`.
  Batch next();

  /// The permutation of an epoch: the sequence at position `index`, for n sequences.
  static int64_t sequence_at(uint64_t seed, int64_t epoch, int64_t index, int64_t n);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stablemask
