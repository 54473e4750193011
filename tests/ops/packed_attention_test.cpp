#include "stablemask/ops/attention.h"
#include "stablemask/ops/functional.h"
#include "tests/ops/attention_cases.h"
#include "tests/ops/checks.h"

namespace stablemask::ops {
namespace {

using testing::evaluate;
using testing::Evaluation;
using testing::normal;
using testing::Tensors;

constexpr int64_t kBatch = 2, kLength = 19, kHeads = 4, kKvHeads = 2, kDim = 16;

PseudoScores some_pseudo(MaskLength::Kind kind) {
  return {alibi_slopes(kHeads), at::full({kHeads}, 0.3, at::kFloat), {kind, kLength - 4}};
}

/// The op under test.
at::Tensor attend(const at::Tensor& packed, const AttentionOptions& options) {
  return packed_attention(packed, kHeads, kKvHeads, options);
}

/// Expects packed_attention on the CPU to be bitwise equal to split_heads and attention, gradients
/// included.
void expect_equal_to_parts(const AttentionOptions& options, const std::string& what) {
  const at::Tensor packed = normal({kBatch, kLength, kHeads + 2 * kKvHeads, kDim}, 1);
  const at::Tensor direction = normal({kBatch, kLength, kHeads, kDim}, 2);
  const auto whole = [&](const Tensors& in) { return attend(in[0], options); };
  const auto parts = [&](const Tensors& in) {
    const auto [q, k, v] = split_heads(in[0], kHeads, kKvHeads);
    return attention(q, k, v, options);
  };
  const Evaluation a = evaluate(whole, {packed}, direction, at::kFloat);
  const Evaluation b = evaluate(parts, {packed}, direction, at::kFloat);
  EXPECT_TRUE(at::equal(a.value, b.value)) << what;
  EXPECT_TRUE(at::equal(a.grads[0], b.grads[0])) << what;
}

TEST(PackedAttention, OnCpuEqualsSplitHeadsAndAttention) {
  AttentionOptions options;
  expect_equal_to_parts(options, "causal");
  options.alibi_slopes = alibi_slopes(kHeads);
  expect_equal_to_parts(options, "ALiBi");
  options.pseudo = some_pseudo(MaskLength::Kind::kFixed);
  expect_equal_to_parts(options, "ALiBi, StableMask");
  options.alibi_slopes = at::Tensor();
  expect_equal_to_parts(options, "StableMask");
  options.pseudo = some_pseudo(MaskLength::Kind::kInfinite);
  expect_equal_to_parts(options, "infinite mask length");
  options.window = 5;
  expect_equal_to_parts(options, "infinite mask length, window");
}

TEST(PackedAttention, AfterRopeMatchesTheReferenceAtEveryLength) {
  for (const testing::AttentionCase& c : testing::rope_cases(16)) {
    testing::compare_rotated_attention(c, at::kFloat, 4e-6);
    testing::compare_rotated_attention(c, at::kBFloat16, 6e-3);
  }
}

TEST(PackedAttention, ThrowsForInconsistentHeads) {
  const at::Tensor packed = at::zeros({1, 3, 8, 4});
  EXPECT_THROW(packed_attention(packed, 3, 2, {}), c10::Error);
  EXPECT_THROW(packed_attention(packed, 8, 0, {}), c10::Error);
}

}  // namespace
}  // namespace stablemask::ops
