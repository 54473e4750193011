#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "stablemask/ops/decode.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/graph.h"
#include "tests/ops/decode_cases.h"

namespace stablemask::ops {
namespace {

using testing::compare_decoding;
using testing::decode_cases;
using testing::DecodeCase;
using testing::Mask;
using testing::special_decode_cases;

class GpuDecode : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(GpuDecode, EveryStepEqualsAttentionOfTheWholeSequence) {
  for (DecodeCase c : decode_cases(64)) {
    compare_decoding(c, decode_attention, at::kBFloat16, 6e-3, at::kCUDA);
    c.start = 33;
    compare_decoding(c, decode_attention, at::kFloat, 4e-6, at::kCUDA);
  }
}

TEST_F(GpuDecode, MaskLengthsGroupsAndPartialRotationEqualTheWholeSequence) {
  for (const DecodeCase& c : special_decode_cases(64)) {
    compare_decoding(c, decode_attention, at::kBFloat16, 6e-3, at::kCUDA);
    compare_decoding(c, decode_attention, at::kFloat, 4e-6, at::kCUDA);
  }
}

/// Sizes at which the blocks of a cluster share the keys, groups of 1 … 11 queries, and head
/// dimensions for each number of lanes and without 16-byte rows.
TEST_F(GpuDecode, ManyKeysAndHeadDims) {
  for (const int64_t dims : {20, 64, 80, 128, 256}) {
    for (const int64_t heads : {2, 4, 8, 22}) {
      for (const int64_t length : {700, 1029}) {
        const DecodeCase c{.length = length,
                           .start = length - 6,
                           .rope_dims = dims,
                           .mask = Mask::kFixed,
                           .mask_length = 1500,
                           .window = length == 700 ? 500 : 0,
                           .slots = length == 700 ? 513 : 1029,
                           .heads = heads,
                           .dims = dims};
        compare_decoding(c, decode_attention, at::kBFloat16, 6e-3, at::kCUDA);
        if (heads == 4) compare_decoding(c, decode_attention, at::kFloat, 4e-6, at::kCUDA);
      }
    }
  }
}

TEST_F(GpuDecode, LargerHeadDimsRunOnTheReference) {
  const DecodeCase c{.start = 35, .rope_dims = 264, .dims = 264};
  compare_decoding(c, decode_attention, at::kBFloat16, 6e-3, at::kCUDA);
}

/// A decoding step of 12 heads whose position advances on the device.
struct Step {
  at::Tensor packed, positions, rows, out;
  DecodeCache cache;
  DecodeOptions options;

  explicit Step(int64_t slots) {
    const auto bf16 = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
    packed = testing::normal({3, 36, 64}, 1).to(bf16);
    cache = {testing::normal({3, slots, 12, 64}, 2).to(bf16),
             testing::normal({3, slots, 12, 64}, 3).to(bf16)};
    positions = at::tensor({slots / 2, int64_t{0}, int64_t{-1}}, at::kLong).to(at::kCUDA);
    rows = at::tensor({1, 2, 0}, at::kLong).to(at::kCUDA);
    out = at::empty({3, 12, 64}, bf16);
    options.rope_dims = 64;
    options.rope_table = rope_table(slots, 64, 1e4).to(at::kCUDA);
    options.pseudo = PseudoScores{at::full({12}, 0.5, bf16.dtype(at::kFloat)),
                                  at::zeros({12}, bf16.dtype(at::kFloat)),
                                  {MaskLength::Kind::kInfinite, 0}};
  }
  void run() {
    out.copy_(decode_attention(packed, 12, cache, rows, positions, options));
    positions.add_(positions.ge(0));
  }
};

TEST_F(GpuDecode, AGraphReplayedAtGrowingPositionsEqualsSingleCallsBitForBit) {
  Graph graph(at::kCUDA);
  const Graph::OnItsStream on_stream(graph);
  Step single(1200), recorded(1200);
  graph.record([&] { recorded.run(); });
  for (int i = 0; i < 40; ++i) {
    single.run();
    graph.replay();
    ASSERT_TRUE(at::equal(single.out, recorded.out)) << "step " << i;
  }
  EXPECT_TRUE(at::equal(single.cache.keys, recorded.cache.keys));
  EXPECT_TRUE(at::equal(single.cache.values, recorded.cache.values));
  EXPECT_EQ(recorded.out[2].count_nonzero().item<int64_t>(), 0);
}

}  // namespace
}  // namespace stablemask::ops
