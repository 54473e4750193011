#include "src/data/sequence_order.h"

#include <algorithm>
#include <cmath>

#include "stablemask/base/error.h"
#include "stablemask/base/random.h"
#include "stablemask/data/loader.h"

namespace stablemask {
namespace {

constexpr int kFractionBits = 40;

}  // namespace

SequenceOrder::SequenceOrder(const std::vector<int64_t>& counts, const std::vector<double>& weights,
                             uint64_t seed)
    : counts_(counts), seed_(seed) {
  const bool one = counts.size() == 1 && weights.empty();
  if (counts.empty() || (!one && weights.size() != counts.size()) ||
      std::ranges::any_of(weights, [](double weight) { return !(weight > 0); })) {
    throw ConfigError("loader: a mixture needs sets of sequences, each with a weight > 0");
  }
  double rest = 0;
  for (const double weight : weights) rest += weight;
  for (size_t set = 0; set + 1 < counts.size(); ++set) {
    const double fraction = std::clamp(weights[set] / rest, 0.0, 1.0);
    rest -= weights[set];
    const double whole = std::ldexp(1.0, kFractionBits);
    fractions_.push_back(static_cast<uint64_t>(std::clamp(fraction * whole, 1.0, whole - 1) + 0.5));
  }
}

int64_t SequenceOrder::share(size_t set, int64_t slots) const {
  if (set == fractions_.size()) return slots;
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>(static_cast<Wide>(slots) * fractions_[set] >> kFractionBits);
}

SequenceOrder::Place SequenceOrder::at(int64_t slot) const {
  size_t set = 0;
  while (share(set, slot + 1) == share(set, slot)) {
    slot -= share(set, slot);
    ++set;
  }
  const int64_t index = share(set, slot), count = counts_[set];
  const uint64_t seed = set == 0 ? seed_ : mix64(seed_ + set);
  return {static_cast<int64_t>(set),
          Loader::sequence_at(seed, index / count, index % count, count)};
}

std::vector<int64_t> SequenceOrder::taken(int64_t slots) const {
  std::vector<int64_t> all;
  for (size_t set = 0; set < counts_.size(); ++set) {
    all.push_back(share(set, slots));
    slots -= all.back();
  }
  return all;
}

}  // namespace stablemask
