#include "stablemask/data/packed_samples.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "stablemask/base/random.h"
#include "stablemask/data/loader.h"
#include "tests/data/fixtures.h"

namespace stablemask {
namespace {

using test::expect_data_error;
using test::make_samples;

constexpr int32_t kEnd = 999;  // the last token of every sample

// Sample i is EOS-like 0, then tokens 1 + i each, then kEnd; the second half is trained.
struct SampleSet {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<bool>> trained;

  void add(size_t length, size_t first_trained) {
    std::vector<int32_t> ids(length, static_cast<int32_t>(1 + tokens.size()));
    ids.front() = 0;
    ids.back() = kEnd;
    std::vector<bool> is_trained(length);
    for (size_t i = first_trained; i < length; ++i) is_trained[i] = true;
    tokens.push_back(ids);
    trained.push_back(is_trained);
  }
};

SampleSet random_samples(size_t count, size_t longest) {
  SampleSet set;
  for (size_t i = 0; i < count; ++i) {
    const size_t length = 2 + mix64(i) % (longest - 1);
    set.add(length, std::max<size_t>(1, length / 2));
  }
  return set;
}

Batch empty_batch(int64_t rows, int64_t columns) {
  Batch batch;
  batch.rows = rows;
  batch.columns = columns;
  for (auto* values : {&batch.tokens, &batch.targets, &batch.document_start}) {
    values->resize(static_cast<size_t>(rows * columns));
  }
  return batch;
}

TEST(PackedSamples, EverySampleIsInOneRowWithItsTargets) {
  const Scratch folder;
  constexpr int64_t kT = 64;
  const SampleSet set = random_samples(300, kT + 1);
  const auto shard = make_samples(folder / "shard", set.tokens, set.trained);
  const PackedSamples packed({shard.get()}, kT);
  std::set<int64_t> seen;
  int64_t inputs = 0, targets = 0;
  for (int64_t row = 0; row < packed.rows(); ++row) {
    Batch batch = empty_batch(2, kT);
    packed.fill(row, 1, batch);
    for (int64_t column = 0; column < kT;) {
      const auto at = static_cast<size_t>(kT + column);
      ASSERT_EQ(batch.document_start[at], column);
      if (batch.tokens[at] == kEnd) {  // the padding: to the end, of one document, no targets
        for (int64_t k = column; k < kT; ++k) {
          ASSERT_EQ(batch.tokens[static_cast<size_t>(kT + k)], kEnd);
          ASSERT_EQ(batch.targets[static_cast<size_t>(kT + k)], kIgnoreTarget);
          ASSERT_EQ(batch.document_start[static_cast<size_t>(kT + k)], column);
        }
        break;
      }
      // A sample of two tokens has one input, 0, and says nothing of its number.
      const int64_t second = column + 1 < kT ? batch.tokens[at + 1] : 0;
      if (second == 0 || second == kEnd) {
        ASSERT_EQ(batch.targets[at], kEnd);
        ++targets;
        ++column, ++inputs;
        continue;
      }
      const auto number = static_cast<size_t>(second - 1);
      ASSERT_TRUE(seen.insert(second).second);
      const auto& ids = set.tokens[number];
      for (size_t k = 0; k + 1 < ids.size(); ++k) {
        ASSERT_EQ(batch.tokens[at + k], ids[k]);
        ASSERT_EQ(batch.targets[at + k], set.trained[number][k + 1] ? ids[k + 1] : kIgnoreTarget);
        ASSERT_EQ(batch.document_start[at + k], column);
        targets += set.trained[number][k + 1];
      }
      column += static_cast<int64_t>(ids.size()) - 1;
      inputs += static_cast<int64_t>(ids.size()) - 1;
    }
  }
  const PackingCounts& counts = packed.counts();
  EXPECT_EQ(counts.samples, 300);
  EXPECT_EQ(counts.truncated + counts.dropped, 0);
  EXPECT_EQ(counts.inputs, inputs);
  EXPECT_EQ(counts.targets, targets);
  EXPECT_EQ(counts.targets, static_cast<int64_t>(shard->info().trained));
  EXPECT_DOUBLE_EQ(packed.fill_rate(),
                   static_cast<double>(inputs) / static_cast<double>(packed.rows() * kT));
  EXPECT_GT(packed.fill_rate(), 0.97);
}

// 5 and 3, 4 and 4, 2: what first fit in the order of the file would not find.
TEST(PackedSamples, IsBestFitDecreasing) {
  const Scratch folder;
  SampleSet set;
  for (const size_t inputs : {3, 4, 2, 5, 4}) set.add(inputs + 1, 1);
  const auto shard = make_samples(folder / "shard", set.tokens, set.trained);
  const PackedSamples packed({shard.get()}, 8);
  ASSERT_EQ(packed.rows(), 3);
  std::vector<std::vector<int64_t>> rows;
  for (int64_t row = 0; row < 3; ++row) {
    Batch batch = empty_batch(1, 8);
    packed.fill(row, 0, batch);
    rows.push_back(batch.tokens);
  }
  EXPECT_EQ(rows[0], (std::vector<int64_t>{0, 4, 4, 4, 4, 0, 1, 1}));
  EXPECT_EQ(rows[1], (std::vector<int64_t>{0, 2, 2, 2, 0, 5, 5, 5}));
  EXPECT_EQ(rows[2], (std::vector<int64_t>{0, 3, kEnd, kEnd, kEnd, kEnd, kEnd, kEnd}));
}

TEST(PackedSamples, LongSamplesAreTruncatedOrDropped) {
  const Scratch folder;
  SampleSet set;
  set.add(9, 5);   // fits T = 8 exactly
  set.add(12, 5);  // truncated to 9 tokens, targets 5 … 8
  set.add(20, 9);  // its targets are cut off
  set.add(20, 8);  // one remains
  const auto shard = make_samples(folder / "shard", set.tokens, set.trained);
  const PackedSamples packed({shard.get()}, 8);
  EXPECT_EQ(packed.counts().samples, 4);
  EXPECT_EQ(packed.counts().truncated, 2);
  EXPECT_EQ(packed.counts().dropped, 1);
  EXPECT_EQ(packed.counts().targets, 4 + 4 + 1);
  ASSERT_EQ(packed.rows(), 3);
  Batch batch = empty_batch(1, 8);
  packed.fill(2, 0, batch);
  EXPECT_EQ(batch.tokens, (std::vector<int64_t>{0, 4, 4, 4, 4, 4, 4, 4}));
  EXPECT_EQ(batch.valid_targets, 1);
  EXPECT_EQ(batch.targets.back(), 4);
}

LoaderOptions small_steps() {
  LoaderOptions options;
  options.context = 16;
  options.batch = options.micro_batch = 4;
  options.prefetch = 0;
  return options;
}

TEST(PackedSamples, ALoaderMixesThemWithText) {
  const Scratch folder;
  const SampleSet set = random_samples(50, 17);
  const auto samples = make_samples(folder / "samples", set.tokens, set.trained);
  const auto text = test::make_shard(folder / "text", std::vector<int32_t>(100, 7), {0, 20});
  const PackedSamples packed({samples.get()}, 16);
  Loader loader({samples, text}, small_steps());
  ASSERT_EQ(loader.sequences_per_epoch(), 6 + packed.rows());
  std::map<int64_t, int64_t> targets_of;
  while (static_cast<int64_t>(targets_of.size()) < loader.sequences_per_epoch()) {
    const Batch batch = loader.next();
    ASSERT_EQ(batch.document_start.size(), 64U);
    int64_t valid = 0;
    for (int64_t row = 0; row < 4; ++row) {
      const int64_t id = batch.sequence_ids[static_cast<size_t>(row)];
      int64_t& targets = targets_of[id] = 0;
      for (size_t i = 16 * static_cast<size_t>(row); i < 16 * static_cast<size_t>(row) + 16; ++i) {
        targets += batch.targets[i] != kIgnoreTarget;
        if (id < 6) {
          EXPECT_EQ(batch.document_start[i], 0);
          EXPECT_EQ(batch.targets[i], 7);
        }
      }
      valid += targets;
    }
    EXPECT_EQ(batch.valid_targets, valid);
  }
  int64_t sum = 0;
  for (const auto& [id, targets] : targets_of) sum += targets;
  EXPECT_EQ(sum, 6 * 16 + packed.counts().targets);
}

TEST(SequenceSets, AreWhatALoaderOfTheShardsHas) {
  const Scratch folder;
  const SampleSet set = random_samples(50, 17);
  const auto samples = make_samples(folder / "samples", set.tokens, set.trained);
  const auto text = test::make_shard(folder / "text", std::vector<int32_t>(100, 7), {0, 20});
  LoaderOptions options = small_steps();
  options.weights = {3, 1};
  options.seed = 5;
  const auto sets = std::make_shared<const SequenceSets>(
      std::vector<std::shared_ptr<const Shard>>{samples, text}, options);
  const std::vector<SetSize> sizes = sets->sizes(40 * 4, 5);
  ASSERT_EQ(sizes.size(), 2U);
  EXPECT_EQ(sizes[0].sequences.packed, PackedSamples({samples.get()}, 16).rows());
  EXPECT_EQ(sizes[0].sequences.samples.samples, 50);
  EXPECT_EQ(sizes[1].sequences.text, 6);
  Loader own({samples, text}, options);
  options.weights.clear();
  Loader shared(sets, options);
  std::vector<int64_t> taken(2);
  for (int step = 0; step < 40; ++step) {
    const Batch a = own.next(), b = shared.next();
    EXPECT_EQ(a.sequence_ids, b.sequence_ids);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.targets, b.targets);
    EXPECT_EQ(a.document_start, b.document_start);
    for (const int64_t id : b.sequence_ids) ++taken[id < sizes[0].sequences.total() ? 0 : 1];
  }
  EXPECT_EQ(taken, (std::vector<int64_t>{sizes[0].taken, sizes[1].taken}));
}

TEST(PackedSamples, AContextThatLeavesNothingIsRefused) {
  const Scratch folder;
  SampleSet set;
  set.add(40, 30);
  const auto samples = make_samples(folder / "samples", set.tokens, set.trained);
  expect_data_error([&] { Loader({samples}, small_steps()); },
                    "none of the 1 samples has a training target in its first 17 tokens");
  const auto text = test::make_shard(folder / "text", std::vector<int32_t>(100, 7));
  expect_data_error([&] { PackedSamples({text.get()}, 16); }, "has no samples");
}

TEST(PackedSamples, ADamagedTokenIsAnErrorOfNext) {
  const Scratch folder;
  SampleSet set;
  set.add(10, 1);
  make_samples(folder / "shard", set.tokens, set.trained);
  std::string bytes = read_bytes(folder / "shard");
  bytes[256 + 2 * 4 + 1] = '\xFF';
  write_bytes(folder / "shard", bytes);
  const auto shard = std::make_shared<const Shard>(Shard::open(folder / "shard"));
  Loader loader({shard}, small_steps());
  expect_data_error([&] { loader.next(); }, "not in its vocabulary");
}

}  // namespace
}  // namespace stablemask
