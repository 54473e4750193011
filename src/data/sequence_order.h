#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace stablemask {

/// Which sequence each slot of a run takes (slot = step·batch + row), from one set of sequences or
/// from a mixture of several. A function of weights, counts, seed and slot; nothing is stored.
///
/// The sets share the slots by repeated division: of the slots that are left to set s and those
/// after it, set s takes the fraction q = w_s / (w_s + w_{s+1} + …) by taking slot i exactly when
/// ⌊(i+1)·q⌋ > ⌊i·q⌋. So after any number g of slots, set s has had g·w_s/Σw of them with an error
/// below the number of sets, over every stretch of the run as over its beginning. A random choice
/// would stray by √g, and a permuted block would be exact at its ends only.
///
/// The i-th slot of a set takes entry i mod n of the permutation of its pass i / n
/// (Loader::sequence_at), n being the set's count.
class SequenceOrder {
 public:
  /// `counts`: sequences of each set, at least one set of at least one. `weights`: one per set, >
  /// 0; empty for one set.
  SequenceOrder(const std::vector<int64_t>& counts, const std::vector<double>& weights,
                uint64_t seed);

  struct Place {
    int64_t set = 0;
    int64_t sequence = 0;  ///< of the set, in [0, its count)
  };
  /// The place that slot `slot` ≥ 0 takes.
  Place at(int64_t slot) const;
  /// Slots of each set among the first `slots`.
  std::vector<int64_t> taken(int64_t slots) const;

 private:
  /// Of the first `slots` slots that reach set `set`, those that it takes.
  int64_t share(size_t set, int64_t slots) const;

  std::vector<int64_t> counts_;
  std::vector<uint64_t> fractions_;  ///< q · 2^40 of each set but the last, which takes the rest
  uint64_t seed_;
};

}  // namespace stablemask
