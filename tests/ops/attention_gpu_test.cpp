#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <vector>

#include "stablemask/base/error.h"
#include "tests/ops/attention_cases.h"

namespace stablemask::ops {
namespace {

using testing::AttentionCase;
using testing::compare_attention;
using testing::compare_rotated_attention;
using testing::Mask;
using testing::rope_cases;
using testing::special_cases;
using testing::square_cases;
using testing::Tensors;

class GpuAttention : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
  void TearDown() override { at::globalContext().setDeterministicAlgorithms(false, false); }
};

void compare_all(int64_t dims, const std::vector<AttentionBackend>& backends, at::ScalarType type,
                 double eps) {
  for (const auto& cases : {square_cases(dims), special_cases(dims)}) {
    for (const AttentionCase& c : cases) compare_attention(c, backends, type, eps, at::kCUDA);
  }
}

TEST_F(GpuAttention, ReferenceInFp32MatchesFp64) {
  compare_all(16, {AttentionBackend::kReference, AttentionBackend::kAuto}, at::kFloat, 4e-6);
}

TEST_F(GpuAttention, EveryBackendInBf16IsAsAccurateAsEager) {
  compare_all(64, {AttentionBackend::kReference, AttentionBackend::kFlash}, at::kBFloat16, 6e-3);
}

TEST_F(GpuAttention, PackedAfterRopeMatchesReferenceAtEveryLength) {
  for (const AttentionCase& c : rope_cases(16)) {
    compare_rotated_attention(c, at::kFloat, 4e-6, at::kCUDA);
  }
  for (const AttentionCase& c : rope_cases(64)) {
    compare_rotated_attention(c, at::kBFloat16, 6e-3, at::kCUDA);
  }
}

TEST_F(GpuAttention, DeterministicModeIsAccurateAndReproducible) {
  at::globalContext().setDeterministicAlgorithms(true, true);
  compare_all(64, {AttentionBackend::kFlash}, at::kBFloat16, 6e-3);
  // With warn_only, LibTorch's backward would still sum in no fixed order.
  at::globalContext().setDeterministicAlgorithms(true, false);
  const AttentionCase c{
      .length = 512, .alibi = true, .mask = Mask::kFixed, .mask_length = 400, .dims = 64};
  const at::Tensor direction = testing::normal(c.inputs()[0].sizes(), 7);
  const auto run = [&] {
    return testing::evaluate(c.op(AttentionBackend::kFlash), c.inputs(), direction, at::kBFloat16,
                             at::kCUDA);
  };
  const testing::Evaluation first = run(), second = run();
  EXPECT_TRUE(at::equal(first.value, second.value));
  for (size_t i = 0; i < first.grads.size(); ++i) {
    EXPECT_TRUE(at::equal(first.grads[i], second.grads[i])) << "gradient " << i;
  }
}

TEST_F(GpuAttention, LargeHeadDimsAndLongContextsMatchReference) {
  for (const bool alibi : {false, true}) {
    for (const int64_t dims : {8, 96, 128, 192, 248}) {
      compare_attention(
          {.length = 130, .alibi = alibi, .mask = Mask::kFixed, .mask_length = 100, .dims = dims},
          {AttentionBackend::kFlash}, at::kBFloat16, 6e-3, at::kCUDA);
    }
    compare_attention(
        {.length = 2048, .alibi = alibi, .mask = Mask::kFixed, .mask_length = 2000, .dims = 64},
        {AttentionBackend::kFlash}, at::kBFloat16, 6e-3, at::kCUDA);
  }
}

TEST_F(GpuAttention, FlashThrowsForUnsupportedInputs) {
  AttentionCase c{.length = 8, .dims = 12};
  Tensors x = c.inputs();
  for (at::Tensor& tensor : x) tensor = tensor.to(at::kCUDA, at::kBFloat16);
  EXPECT_THROW(c.op(AttentionBackend::kFlash)(x), ConfigError);
  EXPECT_NO_THROW(c.op(AttentionBackend::kAuto)(x));
}

}  // namespace
}  // namespace stablemask::ops
