#include "src/data/sequence_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "stablemask/base/error.h"
#include "stablemask/data/loader.h"

namespace stablemask {
namespace {

TEST(SequenceOrder, OfOneSetIsThePermutationsOfItsEpochs) {
  constexpr int64_t kCount = 37;
  const SequenceOrder order({kCount}, {}, 42);
  for (int64_t slot = 0; slot < 3 * kCount; ++slot) {
    const auto place = order.at(slot);
    EXPECT_EQ(place.set, 0);
    EXPECT_EQ(place.sequence, Loader::sequence_at(42, slot / kCount, slot % kCount, kCount));
  }
  EXPECT_EQ(order.taken(100), std::vector<int64_t>{100});
}

TEST(SequenceOrder, SharesAreExactOverEveryStretch) {
  const std::vector<std::vector<double>> cases = {
      {1, 1}, {3, 1}, {0.7, 0.2, 0.1}, {1, 1, 1}, {1e-3, 5, 2, 1e-2}, {1, 2, 3, 4, 5, 6, 7}};
  for (const std::vector<double>& weights : cases) {
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    const std::vector<int64_t> counts(weights.size(), 11);
    const SequenceOrder order(counts, weights, 7);
    const auto sets = static_cast<double>(weights.size());
    std::vector<int64_t> taken(weights.size());
    for (int64_t slot = 0; slot < 4000; ++slot) {
      ++taken[static_cast<size_t>(order.at(slot).set)];
      for (size_t set = 0; set < weights.size(); ++set) {
        const double exact = static_cast<double>(slot + 1) * weights[set] / sum;
        ASSERT_LE(std::abs(static_cast<double>(taken[set]) - exact), sets) << slot << " " << set;
      }
      if (slot % 97 == 0) {
        ASSERT_EQ(order.taken(slot + 1), taken);
      }
    }
  }
}

TEST(SequenceOrder, SharesOfLongRunsAreThoseOfTheWeights) {
  const SequenceOrder order({5, 5, 5}, {0.5, 0.3, 0.2}, 7);
  constexpr int64_t kSlots = int64_t{1} << 50;
  const std::vector<int64_t> taken = order.taken(kSlots);
  EXPECT_EQ(taken[0] + taken[1] + taken[2], kSlots);
  EXPECT_NEAR(static_cast<double>(taken[1]) / kSlots, 0.3, 1e-11);
  const auto place = order.at(kSlots);
  EXPECT_LT(place.sequence, 5);
}

TEST(SequenceOrder, EachSetGoesThroughItsOwnPasses) {
  const std::vector<int64_t> counts = {4, 9, 6};
  const SequenceOrder order(counts, {2, 1, 1}, 3);
  std::vector<std::vector<int64_t>> seen(3);
  for (int64_t slot = 0; slot < 200; ++slot) {
    const auto place = order.at(slot);
    seen[static_cast<size_t>(place.set)].push_back(place.sequence);
  }
  for (size_t set = 0; set < 3; ++set) {
    const auto count = static_cast<size_t>(counts[set]);
    for (size_t pass = 0; (pass + 1) * count <= seen[set].size(); ++pass) {
      const auto begin = seen[set].begin() + static_cast<int64_t>(pass * count);
      EXPECT_EQ(std::set<int64_t>(begin, begin + counts[set]).size(), count) << set << " " << pass;
    }
  }
  EXPECT_NE(std::vector(seen[0].begin(), seen[0].begin() + 40),
            std::vector(seen[1].begin(), seen[1].begin() + 40));
}

TEST(SequenceOrder, DependsOnTheSeed) {
  const SequenceOrder order({50, 50}, {1, 1}, 1), other({50, 50}, {1, 1}, 2);
  int64_t equal = 0;
  for (int64_t slot = 0; slot < 100; ++slot) {
    equal += order.at(slot).sequence == other.at(slot).sequence;
  }
  EXPECT_LT(equal, 20);
}

TEST(SequenceOrder, WeightsThatAreNoneAreRefused) {
  EXPECT_THROW(SequenceOrder({5, 5}, {}, 1), ConfigError);
  EXPECT_THROW(SequenceOrder({5, 5}, {1}, 1), ConfigError);
  EXPECT_THROW(SequenceOrder({5, 5}, {1, 0}, 1), ConfigError);
  EXPECT_THROW(SequenceOrder({5, 5}, {1, std::nan("")}, 1), ConfigError);
}

}  // namespace
}  // namespace stablemask
