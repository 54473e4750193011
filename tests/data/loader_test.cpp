#include "stablemask/data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <set>

#include "tests/data/fixtures.h"

namespace stablemask {
namespace {

using test::expect_data_error;
using test::make_shard;

using Shards = std::vector<std::shared_ptr<const Shard>>;

constexpr int32_t kVocab = 50000;

// Token i of the corpus is `first + i`: a batch shows where its tokens come from.
std::vector<int32_t> counting(size_t count, int32_t first = 0) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Shards counting_corpus(const Scratch& folder, size_t tokens,
                       const std::vector<size_t>& documents = {}) {
  return {make_shard(folder / "corpus", counting(tokens), documents, kVocab)};
}

LoaderOptions options_of(int64_t context, int64_t batch, int64_t micro_batch,
                         int64_t prefetch = 0) {
  LoaderOptions options;
  options.context = context;
  options.batch = batch;
  options.micro_batch = micro_batch;
  options.seed = 42;
  options.prefetch = prefetch;
  return options;
}

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.columns, b.columns);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.document_start, b.document_start);
  EXPECT_EQ(a.sequence_ids, b.sequence_ids);
  EXPECT_EQ(a.valid_targets, b.valid_targets);
}

TEST(Permutation, IsABijection) {
  for (const int64_t n : {1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4096, 4097}) {
    for (const uint64_t seed : {uint64_t{0}, uint64_t{1337}, UINT64_MAX}) {
      std::vector<bool> seen(static_cast<size_t>(n));
      for (int64_t index = 0; index < n; ++index) {
        const int64_t sequence = Loader::sequence_at(seed, 3, index, n);
        ASSERT_GE(sequence, 0);
        ASSERT_LT(sequence, n);
        ASSERT_FALSE(seen[static_cast<size_t>(sequence)]) << "n " << n;
        seen[static_cast<size_t>(sequence)] = true;
      }
    }
  }
}

// Numbers of a second implementation of the same network, in Python.
TEST(Permutation, IsTheSameOnEveryMachine) {
  std::vector<int64_t> order;
  for (int64_t index = 0; index < 10; ++index) {
    order.push_back(Loader::sequence_at(1337, 1, index, 1000));
  }
  EXPECT_EQ(order, (std::vector<int64_t>{635, 127, 385, 779, 467, 653, 405, 98, 555, 675}));
  EXPECT_EQ(Loader::sequence_at(0, 0, 123456789, int64_t{1} << 40), 314877529944);
}

TEST(Permutation, DependsOnSeedAndEpochAndLooksRandom) {
  constexpr int64_t kN = 5000;
  int64_t fixed = 0;
  int64_t as_other_epoch = 0;
  int64_t as_other_seed = 0;
  int64_t rising = 0;
  for (int64_t index = 0; index < kN; ++index) {
    const int64_t sequence = Loader::sequence_at(1, 0, index, kN);
    fixed += sequence == index;
    as_other_epoch += sequence == Loader::sequence_at(1, 1, index, kN);
    as_other_seed += sequence == Loader::sequence_at(2, 0, index, kN);
    rising += index > 0 && sequence > Loader::sequence_at(1, 0, index - 1, kN);
  }
  // A random permutation has 1 fixed point on average (Poisson), and rises half of the time.
  EXPECT_LE(fixed, 8);
  EXPECT_LE(as_other_epoch, 8);
  EXPECT_LE(as_other_seed, 8);
  EXPECT_NEAR(static_cast<double>(rising) / kN, 0.5, 0.03);
}

TEST(Permutation, RefusesWhatDoesNotExist) {
  EXPECT_THROW(Loader::sequence_at(0, 0, 5, 5), ConfigError);
  EXPECT_THROW(Loader::sequence_at(0, 0, -1, 5), ConfigError);
  EXPECT_THROW(Loader::sequence_at(0, -1, 0, 5), ConfigError);
  EXPECT_THROW(Loader::sequence_at(0, 0, 0, 0), ConfigError);
}

TEST(Loader, TargetsAreTheNextTokens) {
  const Scratch folder;
  constexpr int64_t kT = 16;
  Loader loader(counting_corpus(folder, 500), options_of(kT, 8, 4));
  EXPECT_EQ(loader.sequences_per_epoch(), (500 - 1) / kT);
  EXPECT_EQ(loader.micro_batches_per_step(), 2);
  for (int round = 0; round < 20; ++round) {
    const Batch batch = loader.next();
    ASSERT_EQ(batch.rows, 4);
    ASSERT_EQ(batch.columns, kT);
    ASSERT_EQ(batch.tokens.size(), 4U * kT);
    EXPECT_EQ(batch.valid_targets, 4 * kT);
    EXPECT_TRUE(batch.document_start.empty());
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
      const auto row = i / kT;
      const auto column = static_cast<int64_t>(i % kT);
      ASSERT_EQ(batch.tokens[i], batch.sequence_ids[row] * kT + column);
      ASSERT_EQ(batch.targets[i], batch.tokens[i] + 1);
    }
  }
}

TEST(Loader, AnEpochHasEverySequenceOnce) {
  const Scratch folder;
  // 31 sequences in steps of 4: epochs end within a batch.
  Loader loader(counting_corpus(folder, 31 * 8 + 1), options_of(8, 4, 2));
  ASSERT_EQ(loader.sequences_per_epoch(), 31);
  std::vector<int64_t> ids;
  while (ids.size() < 3 * 31) {
    const Batch batch = loader.next();
    ids.insert(ids.end(), batch.sequence_ids.begin(), batch.sequence_ids.end());
  }
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::set<int64_t> of_epoch;
    for (int64_t index = 0; index < 31; ++index) {
      const int64_t id = ids[static_cast<size_t>(epoch * 31 + index)];
      EXPECT_EQ(id, Loader::sequence_at(42, epoch, index, 31));
      of_epoch.insert(id);
    }
    EXPECT_EQ(of_epoch.size(), 31U);
  }
}

TEST(Loader, SeekEqualsFastForward) {
  const Scratch folder;
  const Shards corpus = counting_corpus(folder, 1000, {0, 100, 777});
  LoaderOptions options = options_of(8, 6, 3);
  options.document_mask = true;
  for (const int64_t prefetch : {0, 3}) {
    options.prefetch = prefetch;
    Loader walked(corpus, options);
    std::vector<Batch> batches;
    for (int i = 0; i < 2 * 60; ++i) batches.push_back(walked.next());
    Loader sought(corpus, options);
    for (const int64_t step : {59, 0, 1, 20, 21, 20, 58}) {  // 20 is in the first epoch, 21 ends it
      sought.seek(step);
      expect_equal(sought.next(), batches[static_cast<size_t>(2 * step)]);
      expect_equal(sought.next(), batches[static_cast<size_t>(2 * step + 1)]);
    }
  }
}

TEST(Loader, AnySplitIntoMicroBatchesIsTheSameStep) {
  const Scratch folder;
  const Shards corpus = counting_corpus(folder, 700, {0, 33});
  std::vector<Batch> whole;
  for (const int64_t micro_batch : {8, 4, 2, 1}) {
    LoaderOptions options = options_of(16, 8, micro_batch);
    options.document_mask = true;
    Loader loader(corpus, options);
    for (size_t step = 0; step < 12; ++step) {
      Batch joined;
      for (int64_t part = 0; part < loader.micro_batches_per_step(); ++part) {
        const Batch batch = loader.next();
        const auto add = [](std::vector<int64_t>& to, const std::vector<int64_t>& from) {
          to.insert(to.end(), from.begin(), from.end());
        };
        add(joined.tokens, batch.tokens);
        add(joined.targets, batch.targets);
        add(joined.document_start, batch.document_start);
        add(joined.sequence_ids, batch.sequence_ids);
        joined.rows += batch.rows;
        joined.columns = batch.columns;
        joined.valid_targets += batch.valid_targets;
      }
      if (micro_batch == 8) whole.push_back(joined);
      expect_equal(joined, whole[step]);
    }
  }
}

TEST(Loader, MicroBatchZeroIsTheBatch) {
  const Scratch folder;
  Loader loader(counting_corpus(folder, 500), options_of(8, 4, 0));
  EXPECT_EQ(loader.micro_batches_per_step(), 1);
  EXPECT_EQ(loader.next().rows, 4);
}

LoaderOptions of_process(LoaderOptions options, int64_t rank, int64_t size) {
  options.rank = rank;
  options.size = size;
  return options;
}

TEST(Loader, ProcessesTakeTurnsWithTheMicroBatchesOfOne) {
  const Scratch folder;
  const Shards corpus = counting_corpus(folder, 1000, {0, 33, 500});
  for (const int64_t size : {2, 3, 6}) {
    for (const int64_t prefetch : {0, 3}) {
      LoaderOptions options = options_of(8, 12, 2, prefetch);
      options.document_mask = true;
      Loader alone(corpus, options);
      std::vector<std::unique_ptr<Loader>> loaders;
      for (int64_t rank = 0; rank < size; ++rank) {
        loaders.push_back(std::make_unique<Loader>(corpus, of_process(options, rank, size)));
        EXPECT_EQ(loaders.back()->micro_batches_per_step(), 6 / size);
      }
      const auto compare = [&](int64_t steps) {
        for (int64_t i = 0; i < 6 * steps; ++i) {
          expect_equal(loaders[static_cast<size_t>(i % size)]->next(), alone.next());
        }
      };
      compare(25);  // more than two epochs
      for (const int64_t step : {19, 0, 10}) {
        alone.seek(step);
        for (const auto& loader : loaders) loader->seek(step);
        compare(2);
      }
    }
  }
}

TEST(Loader, MicroBatchZeroIsTheShareOfAProcess) {
  const Scratch folder;
  Loader loader(counting_corpus(folder, 500), of_process(options_of(8, 12, 0), 2, 3));
  EXPECT_EQ(loader.micro_batches_per_step(), 1);
  const Batch batch = loader.next();
  EXPECT_EQ(batch.rows, 4);
  EXPECT_EQ(batch.sequence_ids[0], Loader::sequence_at(42, 0, 8, loader.sequences_per_epoch()));
}

TEST(Loader, DocumentStartsAreColumnsOfTheSequence) {
  const Scratch folder;
  const std::vector<size_t> starts = {0, 5, 6, 20, 32, 33, 100, 127, 128, 199};
  LoaderOptions options = options_of(16, 4, 4);
  options.document_mask = true;
  Loader loader(counting_corpus(folder, 201, starts), options);
  for (int round = 0; round < 6; ++round) {
    const Batch batch = loader.next();
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
      const auto first = batch.sequence_ids[i / 16] * 16;  // its index in the corpus
      const auto here = static_cast<size_t>(batch.tokens[i]);
      const size_t document = *(std::upper_bound(starts.begin(), starts.end(), here) - 1);
      const int64_t expected = std::max<int64_t>(0, static_cast<int64_t>(document) - first);
      ASSERT_EQ(batch.document_start[i], expected) << "token " << here;
    }
  }
}

TEST(Loader, PrefetchChangesNothing) {
  const Scratch folder;
  const Shards corpus = counting_corpus(folder, 3000);
  Loader direct(corpus, options_of(32, 4, 2, 0));
  for (const int64_t prefetch : {1, 4, 50}) {
    direct.seek(0);
    Loader ahead(corpus, options_of(32, 4, 2, prefetch));
    for (int i = 0; i < 150; ++i) expect_equal(ahead.next(), direct.next());
  }
}

TEST(Loader, SeeksWhileTheThreadIsAtWork) {
  const Scratch folder;
  const Shards corpus = counting_corpus(folder, 3000);
  Loader direct(corpus, options_of(32, 4, 4, 0));
  Loader ahead(corpus, options_of(32, 4, 4, 8));
  for (int64_t i = 0; i < 500; ++i) {
    const int64_t step = i * 31 % 97;
    ahead.seek(step);
    direct.seek(step);
    for (int64_t n = i % 4; n > 0; --n) expect_equal(ahead.next(), direct.next());
  }
  const Loader never_read(corpus, options_of(32, 4, 4, 8));
}

TEST(Loader, ShardsAreJoined) {
  const Scratch folder;
  const Shards parts = {make_shard(folder / "a", counting(101, 0), {0, 50}, kVocab),
                        make_shard(folder / "b", counting(1, 101), {}, kVocab),
                        make_shard(folder / "c", counting(260, 102), {30}, kVocab)};
  LoaderOptions options = options_of(16, 4, 4);
  options.document_mask = true;
  Loader joined(parts, options);
  // The second and third begin a text, and so a document, though none of their lines says so.
  Loader whole(counting_corpus(folder, 362, {0, 50, 101, 102, 132}), options);
  ASSERT_EQ(joined.sequences_per_epoch(), whole.sequences_per_epoch());
  for (int i = 0; i < 12; ++i) expect_equal(joined.next(), whole.next());
}

TEST(Loader, RefusesWhatCannotBeRead) {
  const Scratch folder;
  const Shards corpus = counting_corpus(folder, 100);
  const auto make = [](Shards shards, LoaderOptions options) {
    return [shards, options] { Loader(shards, options); };
  };
  expect_data_error(make({}, options_of(8, 4, 4)), "no token shards");
  expect_data_error(make(corpus, options_of(100, 4, 4)), "100 tokens, one sequence needs 101");
  EXPECT_NO_THROW(make(corpus, options_of(99, 4, 4))());
  const auto other_tokenizer =
      make_shard(folder / "other", counting(10), {}, kVocab, std::string(64, 'c'));
  expect_data_error(make({corpus[0], other_tokenizer}, options_of(8, 4, 4)), "another tokenizer");
  const auto other_vocab = make_shard(folder / "vocab", counting(10), {}, kVocab + 1);
  expect_data_error(make({corpus[0], other_vocab}, options_of(8, 4, 4)), "different vocabularies");
  EXPECT_THROW(make(corpus, options_of(8, 4, 3))(), ConfigError);
  EXPECT_THROW(make(corpus, options_of(0, 4, 4))(), ConfigError);
  EXPECT_THROW(make(corpus, options_of(8, 0, 0))(), ConfigError);
  EXPECT_THROW(make(corpus, options_of(8, 4, 4, -1))(), ConfigError);
  EXPECT_THROW(make(corpus, of_process(options_of(8, 4, 2), 0, 3))(), ConfigError);
  EXPECT_THROW(make(corpus, of_process(options_of(8, 4, 2), 2, 2))(), ConfigError);
  EXPECT_THROW(make(corpus, of_process(options_of(8, 4, 2), 0, 0))(), ConfigError);
  Loader loader(corpus, options_of(8, 4, 4, 2));
  EXPECT_THROW(loader.seek(-1), ConfigError);
  EXPECT_THROW(loader.seek(INT64_MAX / 3), ConfigError);
}

TEST(Loader, AShardShortenedDuringTheRunIsAnErrorOfNext) {
  const Scratch folder;
  for (const int64_t prefetch : {0, 2}) {
    const Shards corpus = counting_corpus(folder, 20000);
    Loader loader(corpus, options_of(100, 1, 1, prefetch));
    loader.next();
    std::filesystem::resize_file(folder / "corpus", 256 + 2 * 5000);
    const auto read_on = [&] {
      for (int i = 0; i < 150; ++i) loader.next();
    };
    expect_data_error(read_on, "was shortened while in use");
    // Not one batch of the rest, and no wait for one: the error again.
    if (prefetch > 0) expect_data_error([&] { loader.next(); }, "was shortened while in use");
  }
}

TEST(Loader, ADamagedTokenIsAnErrorOfNext) {
  const Scratch folder;
  make_shard(folder / "shard", counting(90), {}, 1000);
  std::string bytes = read_bytes(folder / "shard");
  bytes[256 + 2 * 40 + 1] = '\xFF';  // token 40
  write_bytes(folder / "shard", bytes);
  const Shards corpus = {std::make_shared<const Shard>(Shard::open(folder / "shard"))};
  for (const int64_t prefetch : {0, 2}) {
    Loader loader(corpus, options_of(8, 1, 1, prefetch));
    ASSERT_EQ(loader.sequences_per_epoch(), 11);
    expect_data_error(
        [&] {
          for (int i = 0; i < 11; ++i) loader.next();
        },
        "not in its vocabulary");
  }
}

}  // namespace
}  // namespace stablemask
