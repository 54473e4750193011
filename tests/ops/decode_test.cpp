#include "stablemask/ops/decode.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/decode_cases.h"

namespace stablemask::ops {
namespace {

using testing::compare_decoding;
using testing::decode_cases;
using testing::DecodeCase;
using testing::Mask;
using testing::normal;
using testing::refused;
using testing::special_decode_cases;

TEST(Decode, EveryStepEqualsAttentionOfTheWholeSequence) {
  for (const DecodeCase& c : decode_cases(16)) {
    compare_decoding(c, decode_attention, at::kFloat, 4e-6);
  }
}

TEST(Decode, MaskLengthsGroupsAndPartialRotationEqualTheWholeSequence) {
  for (const DecodeCase& c : special_decode_cases(16)) {
    compare_decoding(c, decode_attention, at::kFloat, 4e-6);
    compare_decoding(c, reference::decode_attention, at::kFloat, 4e-6);
  }
}

TEST(Decode, ReferenceEqualsTheWholeSequence) {
  for (DecodeCase c : decode_cases(16)) {
    c.start = 33;
    compare_decoding(c, reference::decode_attention, at::kFloat, 4e-6);
  }
}

TEST(Decode, HeadDimsAndBf16) {
  for (const int64_t dims : {2, 24, 64, 80, 128, 256}) {
    const DecodeCase c{
        .start = 30, .rope_dims = dims, .mask = Mask::kBeyond, .window = 33, .dims = dims};
    compare_decoding(c, decode_attention, at::kFloat, 4e-6);
    compare_decoding(c, decode_attention, at::kBFloat16, 6e-3);
  }
}

/// Arguments that are in order: B = 2, R = 3, S = 5, H = 4, Hkv = 2, D = 8.
struct Arguments {
  at::Tensor packed = normal({2, 8, 8}, 1, at::kFloat);
  int64_t heads = 4;
  DecodeCache cache{normal({3, 5, 2, 8}, 2, at::kFloat), normal({3, 5, 2, 8}, 3, at::kFloat)};
  at::Tensor rows = at::tensor({2, 0}, at::kLong), positions = at::tensor({3, 1}, at::kLong);
  DecodeOptions options;

  Arguments() {
    options.pseudo = {at::ones({4}), at::zeros({4}), {MaskLength::Kind::kFixed, 3}};
    options.rope_dims = 4;
    options.rope_table = rope_table(8, 4, 1e4);
  }
  at::Tensor run(testing::DecodeOp op = decode_attention) const {
    return op(packed, heads, cache, rows, positions, options);
  }
};

TEST(Decode, ASequencesResultDoesNotDependOnTheOthers) {
  Arguments together, alone;
  const at::Tensor out = together.run();
  for (int64_t b = 0; b < 2; ++b) {
    alone.packed = together.packed.slice(0, b, b + 1);
    alone.rows = together.rows.slice(0, b, b + 1);
    alone.positions = together.positions.slice(0, b, b + 1);
    EXPECT_TRUE(at::equal(alone.run()[0], out[b])) << b;
  }
  alone.packed = together.packed.slice(0, 0, 0);
  alone.rows = alone.positions = at::empty({0}, at::kLong);
  EXPECT_EQ(alone.run().sizes(), (std::vector<int64_t>{0, 4, 8}));
}

TEST(Decode, WithoutRowsSequenceBIsInRowB) {
  Arguments given, absent;
  given.rows = at::arange(2);
  absent.rows = at::Tensor();
  EXPECT_TRUE(at::equal(given.run(), absent.run()));
  EXPECT_TRUE(at::equal(given.cache.keys, absent.cache.keys));
}

void refused_by_both(const std::string& piece, const std::function<void(Arguments&)>& change) {
  Arguments x;
  change(x);
  const DecodeCache before{x.cache.keys.clone(), x.cache.values.clone()};
  refused(piece, [&] { x.run(); });
  refused(piece, [&] { x.run(reference::decode_attention); });
  EXPECT_TRUE(at::equal(before.keys, x.cache.keys) && at::equal(before.values, x.cache.values))
      << piece;
}

TEST(DecodeContracts, ShapesAndDtypes) {
  EXPECT_EQ(Arguments().run().sizes(), (std::vector<int64_t>{2, 4, 8}));
  refused_by_both("packed must be fp32 or bf16, got CPUDoubleType",
                  [](Arguments& x) { x.packed = x.packed.to(at::kDouble); });
  refused_by_both("keys must be CPUFloatType as packed",
                  [](Arguments& x) { x.cache.keys = x.cache.keys.to(at::kBFloat16); });
  refused_by_both("without a dimension of size 0, got [3, 5, 2, 8] and [3, 4, 2, 8]",
                  [](Arguments& x) { x.cache.values = x.cache.values.slice(1, 0, 4); });
  refused_by_both("last dimension of keys and values must be contiguous", [](Arguments& x) {
    x.cache.keys = x.cache.keys.transpose(2, 3).contiguous().transpose(2, 3);
  });
  refused_by_both("heads must be a multiple of Hkv = 2, got 3", [](Arguments& x) { x.heads = 3; });
  refused_by_both("packed must be [B, 10, 8] for keys [3, 5, 2, 8] and 6 heads, got [2, 8, 8]",
                  [](Arguments& x) { x.heads = 6; });
  refused_by_both("positions must be int64 [B] = [2], got CPULongType [1]",
                  [](Arguments& x) { x.positions = x.positions.slice(0, 0, 1); });
  refused_by_both("rows must be int64 [B] = [2], got CPUIntType [2]",
                  [](Arguments& x) { x.rows = x.rows.to(at::kInt); });
  refused_by_both("2 sequences need as many rows of the cache, got keys [1, 5, 2, 8]",
                  [](Arguments& x) {
                    x.cache = {x.cache.keys.slice(0, 0, 1), x.cache.values.slice(0, 0, 1)};
                  });
}

TEST(DecodeContracts, Options) {
  refused_by_both("scale must be finite",
                  [](Arguments& x) { x.options.scale = std::numeric_limits<double>::infinity(); });
  refused_by_both("window must be at least 0, got -1", [](Arguments& x) { x.options.window = -1; });
  refused_by_both("alibi_slopes must be [H] = [4]",
                  [](Arguments& x) { x.options.alibi_slopes = at::ones({2}); });
  refused_by_both("gamma and p_base must be [H] = [4]", [](Arguments& x) {
    x.options.pseudo = {at::ones({2}), at::zeros({2}), {MaskLength::Kind::kFixed, 3}};
  });
  refused_by_both("gamma 0 gives an infinite mask length", [](Arguments& x) {
    x.options.pseudo = {at::zeros({4}), at::zeros({4}), {MaskLength::Kind::kInfinite, 0}};
  });
  refused_by_both("the mask length \"sequence\" cannot be used with a cache", [](Arguments& x) {
    x.options.pseudo->length = {MaskLength::Kind::kSequence, 0};
  });
  for (const int64_t dims : {-2, 3, 10}) {
    refused_by_both("rope_dims must be even and from 0 to D = 8, got " + std::to_string(dims),
                    [=](Arguments& x) { x.options.rope_dims = dims; });
  }
  refused_by_both("rope_table must be contiguous fp32 [P, 8], got CPUFloatType [8, 4]",
                  [](Arguments& x) { x.options.rope_dims = 8; });
  refused_by_both("rope_table is undefined",
                  [](Arguments& x) { x.options.rope_table = at::Tensor(); });
}

TEST(DecodeContracts, RowsAndPositions) {
  const auto at_positions = [](int64_t a, int64_t b) {
    return [=](Arguments& x) { x.positions = at::tensor({a, b}, at::kLong); };
  };
  const auto in_rows = [](int64_t a, int64_t b) {
    return [=](Arguments& x) { x.rows = at::tensor({a, b}, at::kLong); };
  };
  refused_by_both("position -2 of sequence 0 must be at least -1", at_positions(-2, 0));
  refused_by_both("position 5 of sequence 1 has no slot: the cache has 5 and the window is 0",
                  at_positions(0, 5));
  refused_by_both("position 5 of sequence 1 has no slot: the cache has 5 and the window is 6",
                  [&](Arguments& x) {
                    at_positions(0, 5)(x);
                    x.options.window = 6;
                  });
  refused_by_both("position 8 of sequence 0 is outside the rope_table of 8", [&](Arguments& x) {
    at_positions(8, 0)(x);
    x.options.window = 5;
  });
  refused_by_both("row 3 of sequence 1 is outside the cache of 3", in_rows(0, 3));
  refused_by_both("row -1 of sequence 0 is outside the cache of 3", in_rows(-1, 0));
  refused_by_both("row 1 of the cache is that of two sequences", in_rows(1, 1));
  Arguments idle;
  in_rows(7, 1)(idle);
  at_positions(-1, 2)(idle);
  EXPECT_EQ(idle.run()[0].count_nonzero().item<int64_t>(), 0);
}

}  // namespace
}  // namespace stablemask::ops
