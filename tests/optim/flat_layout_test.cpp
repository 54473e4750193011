#include "stablemask/optim/flat_layout.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "stablemask/nn/parameters.h"
#include "tests/dist/lone_group.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using Kind = Bucket::Kind;

ModelConfig model_config(bool tied = false) {
  ModelConfig config = testing_models::tiny_config(Position::kRope, true);
  config.layers = 3;
  config.stable_mask.learnable = true;
  config.tied_head = tied;
  return config;
}

FlatLayout trained(const ModelConfig& config, int64_t freeze_layers = 0, Share share = {}) {
  return {config, freeze_layers, FlatLayout::Kind::kTrained, share};
}

TEST(FlatLayout, PartsOfAllProcessesCoverEveryBucketOnce) {
  for (const bool tied : {false, true}) {
    for (const int64_t parts : {1, 2, 3, 8}) {
      int64_t end_of_part = 0;
      for (size_t bucket = 0; bucket < 5u - tied; ++bucket) {
        for (int64_t part = 0; part < parts; ++part) {
          const FlatLayout layout = trained(model_config(tied), 0, {part, parts});
          const FlatRange own = layout.own(layout.buckets().at(bucket));
          EXPECT_EQ(own.begin, end_of_part);
          EXPECT_EQ(own.begin % 64, 0);
          EXPECT_GT(own.size(), 0);
          end_of_part = own.end;
        }
        EXPECT_EQ(end_of_part,
                  trained(model_config(tied), 0, {0, parts}).buckets()[bucket].range.end);
      }
    }
  }
}

TEST(FlatLayout, EveryParameterIsInTheBucketOfItsKind) {
  for (const bool tied : {false, true}) {
    for (const int64_t parts : {1, 3}) {
      const ModelConfig config = model_config(tied);
      const FlatLayout layout = trained(config, 0, {0, parts});
      std::set<std::string> names;
      for (const Bucket& bucket : layout.buckets()) {
        int64_t end = bucket.range.begin;
        for (const nn::Parameter& parameter : nn::parameters(config)) {
          const FlatLayout::Entry* entry = layout.find(parameter.name);
          ASSERT_TRUE(entry);
          if (entry->offset < bucket.range.begin || entry->offset >= bucket.range.end) continue;
          EXPECT_TRUE(names.insert(parameter.name).second);
          EXPECT_GE(entry->offset, end) << "overlaps the one before";
          EXPECT_EQ(entry->offset % 64, 0);
          end = entry->offset + entry->numel();
          EXPECT_EQ(bucket.kind == Kind::kVectors, !parameter.decays()) << parameter.name;
          EXPECT_EQ(bucket.kind == Kind::kHead || bucket.kind == Kind::kBlock, parameter.multiplies)
              << parameter.name;
          if (bucket.kind == Kind::kBlock) {
            EXPECT_EQ(parameter.block, bucket.block);
          }
        }
        EXPECT_LE(end, bucket.range.end);
        EXPECT_EQ(bucket.kind == Kind::kVectors, bucket.range.begin >= layout.decay_end());
        EXPECT_EQ(bucket.range.end <= layout.overwritten_end(),
                  bucket.kind == Kind::kHead || bucket.kind == Kind::kBlock);
      }
      EXPECT_EQ(names.size(), nn::parameters(config).size());
      EXPECT_EQ(layout.buckets().back().range.end, layout.size());
    }
  }
}

/// Bits of a run with one process depend on it.
TEST(FlatLayout, OnePartHasNoPaddingBetweenBuckets) {
  const FlatLayout layout = trained(model_config());
  int64_t offset = 0;
  for (const FlatLayout::Entry& entry : layout.entries()) {
    EXPECT_EQ(entry.offset, offset) << entry.name;
    offset += (entry.numel() + 63) / 64 * 64;
  }
  EXPECT_EQ(layout.size(), offset);
  ASSERT_EQ(layout.own_ranges().size(), 1u);
  EXPECT_EQ(layout.own_ranges()[0].size(), offset);
}

TEST(FlatLayout, LocalBuffersHoldTheOwnPartsWithoutGaps) {
  for (const int64_t parts : {1, 2, 3}) {
    const FlatLayout layout = trained(model_config(), 0, {parts - 1, parts});
    EXPECT_EQ(layout.local_size() * parts, layout.size());
    int64_t end = 0;
    for (const FlatRange& own : layout.own_ranges()) {
      EXPECT_EQ(layout.local(own).begin, end);
      EXPECT_EQ(layout.local(own).size(), own.size());
      EXPECT_EQ(layout.local({own.begin + 64, own.end}).begin, end + 64);
      end += own.size();
    }
    EXPECT_EQ(end, layout.local_size());
  }
  const FlatLayout half = trained(model_config(), 0, {1, 2});
  const Bucket& bucket = half.buckets()[1];
  EXPECT_THROW(half.local(bucket.range), c10::Error) << "another process has the first half";
  EXPECT_THROW(half.local({bucket.range.end - 64, bucket.range.end + 64}), c10::Error);
}

TEST(FlatLayout, NumbersOfElementsDoNotDependOnTheParts) {
  const FlatLayout one = trained(model_config());
  EXPECT_EQ(one.number_of(0), 0);
  EXPECT_EQ(one.number_of(one.size() - 1), one.size() - 1);
  EXPECT_THROW(one.number_of(one.size()), c10::Error);
  for (const int64_t parts : {2, 3, 8}) {
    const FlatLayout layout = trained(model_config(), 0, {parts - 1, parts});
    EXPECT_GT(layout.size(), one.size()) << "no padding, which the numbers leave out";
    for (const FlatLayout::Entry& entry : layout.entries()) {
      const int64_t offset = one.find(entry.name)->offset;
      EXPECT_EQ(layout.number_of(entry.offset), offset) << entry.name;
      EXPECT_EQ(layout.number_of(entry.offset + entry.numel() - 1), offset + entry.numel() - 1);
    }
    for (const FlatRange& own : layout.own_ranges()) {
      EXPECT_EQ(layout.number_of(own.end - 1) - layout.number_of(own.begin), own.size() - 1);
    }
  }
}

TEST(FlatLayout, LocalBuffersMayHoldTheBlocksOrTheRest) {
  for (const bool tied : {false, true}) {
    for (const int64_t parts : {1, 3}) {
      const FlatLayout layout = trained(model_config(tied), 0, {parts - 1, parts});
      std::map<Cover, int64_t> ends;
      for (const Bucket& bucket : layout.buckets()) {
        const FlatRange own = layout.own(bucket);
        const Cover cover = bucket.kind == Kind::kBlock ? Cover::kBlocks : Cover::kRest;
        const Cover other = bucket.kind == Kind::kBlock ? Cover::kRest : Cover::kBlocks;
        EXPECT_TRUE(layout.covers(cover, bucket.range) && !layout.covers(other, bucket.range));
        EXPECT_EQ(layout.local(own, cover).begin, ends[cover]);
        EXPECT_EQ(layout.local(own, cover).size(), own.size());
        EXPECT_THROW(layout.local(own, other), c10::Error);
        ends[cover] += own.size();
      }
      EXPECT_EQ(layout.local_size(Cover::kBlocks), ends[Cover::kBlocks]);
      EXPECT_EQ(layout.local_size(Cover::kRest), ends[Cover::kRest]);
      EXPECT_FALSE(layout.covers(Cover::kRest, {0, layout.size()}));
    }
  }
}

TEST(FlatLayout, FrozenParametersAreInALayoutOfTheirOwn) {
  for (const bool tied : {false, true}) {
    const ModelConfig config = model_config(tied);
    const FlatLayout some = trained(config, 2, {0, 2}),
                     others(config, 2, FlatLayout::Kind::kFrozen);
    EXPECT_EQ(some.entries().size() + others.entries().size(), nn::parameters(config).size());
    for (const nn::Parameter& parameter : nn::parameters(config)) {
      EXPECT_EQ(some.find(parameter.name) == nullptr, parameter.is_frozen(2)) << parameter.name;
      EXPECT_EQ(others.find(parameter.name) != nullptr, parameter.is_frozen(2)) << parameter.name;
    }
    std::vector<Kind> kinds;
    for (const Bucket& bucket : some.buckets()) kinds.push_back(bucket.kind);
    EXPECT_EQ(kinds, tied ? (std::vector{Kind::kBlock, Kind::kVectors})
                          : (std::vector{Kind::kHead, Kind::kBlock, Kind::kVectors}));
    EXPECT_EQ(some.buckets()[tied ? 0 : 1].block, 2);
  }
}

TEST(FlatLayout, ShareIsAPartForEachProcessOfAShardedOptimizer) {
  struct Second final : LoneGroup {
    int64_t rank() const override { return 1; }
    int64_t size() const override { return 3; }
  };
  EXPECT_EQ(share_of(Second(), ShardKind::kNone).parts, 1);
  EXPECT_EQ(share_of(Second(), ShardKind::kNone).part, 0);
  EXPECT_EQ(share_of(Second(), ShardKind::kOptimizer).parts, 3);
  EXPECT_EQ(share_of(Second(), ShardKind::kOptimizer).part, 1);
  EXPECT_THROW(trained(model_config(), 0, {2, 2}), c10::Error);
}

}  // namespace
}  // namespace stablemask
