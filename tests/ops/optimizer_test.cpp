#include "stablemask/ops/optimizer.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "stablemask/ops/reference.h"
#include "tests/ops/checks.h"

namespace stablemask::ops {
namespace {

using testing::normal;
using testing::relative_error;

struct Buffers {
  at::Tensor weights, remainder, m, v;
};

Buffers fresh(int64_t size, at::ScalarType type = at::kFloat) {
  return {normal({size}, 1, type), {}, at::zeros({size}, type), at::zeros({size}, type)};
}

constexpr AdamWArgs kArgs{0.9, 0.95, 1e-8, 0.1};
constexpr double kGradScale = 0.7;

double lr_of(int64_t step) { return 1e-2 * (1.0 + 0.1 * static_cast<double>(step)); }

void update(Buffers& s, const at::Tensor& grad, int64_t step) {
  adamw_(s.weights, s.remainder, s.m, s.v, grad, kArgs,
         update_control(lr_of(step), step, kGradScale));
}

TEST(AdamW, MatchesTheFormulaOverSteps) {
  for (const int64_t size : {1, 7, 1009, 40000}) {
    Buffers got = fresh(size), want = fresh(size, at::kDouble);
    for (int64_t step = 1; step <= 5; ++step) {
      const at::Tensor grad = normal({size}, 10 + static_cast<uint64_t>(step));
      update(got, grad.to(at::kFloat), step);
      // The formula of ops/optimizer.h, element by element.
      for (int64_t i = 0; i < std::min<int64_t>(size, 100); ++i) {
        double* w = want.weights.data_ptr<double>() + i;
        double *m = want.m.data_ptr<double>() + i, *v = want.v.data_ptr<double>() + i;
        const double g = grad.data_ptr<double>()[i] * kGradScale;
        *m = kArgs.beta1 * *m + (1 - kArgs.beta1) * g;
        *v = kArgs.beta2 * *v + (1 - kArgs.beta2) * g * g;
        const double unbiased_m = *m / (1 - std::pow(kArgs.beta1, step));
        const double unbiased_v = *v / (1 - std::pow(kArgs.beta2, step));
        *w -= lr_of(step) *
              (kArgs.weight_decay * *w + unbiased_m / (std::sqrt(unbiased_v) + kArgs.eps));
      }
    }
    const auto head = [size](const at::Tensor& x) {
      return x.slice(0, 0, std::min<int64_t>(size, 100));
    };
    EXPECT_LT(relative_error(head(got.weights), head(want.weights)), 5e-7) << size;
    EXPECT_LT(relative_error(head(got.m), head(want.m)), 5e-7) << size;
    EXPECT_LT(relative_error(head(got.v), head(want.v)), 5e-7) << size;
  }
}

TEST(AdamW, KernelMatchesTheReference) {
  Buffers got = fresh(100003), want = fresh(100003);
  for (int64_t step = 1; step <= 3; ++step) {
    const at::Tensor grad = normal({100003}, 20 + static_cast<uint64_t>(step), at::kFloat);
    update(got, grad, step);
    reference::adamw_(want.weights, want.remainder, want.m, want.v, grad, kArgs,
                      update_control(lr_of(step), step, kGradScale));
  }
  EXPECT_LT(relative_error(got.weights, want.weights), 5e-7);
}

at::Tensor bits_of(const at::Tensor& x) { return x.contiguous().view(at::kInt); }

TEST(SplitWeights, RoundTripIsLossless) {
  // All magnitudes, ties of the bf16 rounding, the largest number, infinities, both zeros.
  const at::Tensor patterns =
      at::tensor({0, 1, 0x7fff, 0x8000, 0x8001, 0x00800000, 0x3f800000, 0x3f808000, 0x3f818000,
                  0x3f817fff, 0x3f7fffff, 0x7f7fffff, 0x7f7f7fff, 0x7f800000},
                 at::kInt);
  const at::Tensor numbers = at::cat({patterns.view(at::kFloat), normal({10007}, 3, at::kFloat)});
  for (const at::Tensor& x : {numbers, -numbers}) {
    const SplitWeights split = split_weights(x);
    EXPECT_TRUE(at::equal(bits_of(join_weights(split)), bits_of(x)));
    // Rounds to nearest; ties away from zero, where LibTorch rounds to even.
    const at::Tensor tie = bits_of(x).bitwise_and(0xffff).eq(0x8000);
    EXPECT_TRUE(at::equal(
        split.rounded,
        at::where(tie, bits_of(x) + 0x8000, bits_of(x)).view(at::kFloat).to(at::kBFloat16)));
  }
}

TEST(SplitWeights, NanStaysNan) {
  const at::Tensor bits = at::tensor({0x7fffffff, 0x7fc00000, 0x7f800001, -1}, at::kInt);
  const SplitWeights split = split_weights(bits.view(at::kFloat));
  EXPECT_TRUE(split.rounded.isnan().all().item<bool>());
  EXPECT_TRUE(join_weights(split).isnan().all().item<bool>());
}

TEST(AdamW, SplitWeightsUpdateLikeFp32) {
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    const int64_t size = 40009;  // two blocks and a remainder
    Buffers whole = fresh(size), split = fresh(size);
    const SplitWeights start = split_weights(split.weights);
    split.weights = start.rounded;
    split.remainder = start.remainder;
    for (int64_t step = 1; step <= 3; ++step) {
      const at::Tensor grad = normal({size}, 30 + static_cast<uint64_t>(step), at::kFloat);
      const at::Tensor control = update_control(lr_of(step), step, kGradScale);
      for (Buffers* s : {&whole, &split}) {
        adamw_(s->weights, s->remainder, s->m, s->v, grad, kArgs, control, kernels);
      }
    }
    EXPECT_TRUE(at::equal(join_weights({split.weights, split.remainder}), whole.weights));
    EXPECT_TRUE(at::equal(split.m, whole.m) && at::equal(split.v, whole.v));
  }
}

TEST(AdamW, SlicesAreBitwiseEqualToTheWholeBuffer) {
  const at::Tensor grad = normal({70001}, 2, at::kFloat);
  Buffers whole = fresh(70001), parts = fresh(70001);
  update(whole, grad, 1);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 33333}, {33333, 70001}}) {
    const auto cut = [begin = begin, end = end](const at::Tensor& x) {
      return x.slice(0, begin, end);
    };
    Buffers part{cut(parts.weights), {}, cut(parts.m), cut(parts.v)};
    update(part, cut(grad), 1);
  }
  EXPECT_TRUE(at::equal(whole.weights, parts.weights));
}

TEST(AdamW, BitwiseReproducibleAtAnyThreadCount) {
  const int threads = at::get_num_threads();
  std::vector<at::Tensor> results;
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    Buffers s = fresh(200003);
    update(s, normal({200003}, 2, at::kFloat), 1);
    results.push_back(s.weights);
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(results[0], results[1]));
  EXPECT_TRUE(at::equal(results[0], results[2]));
}

TEST(AdamW, NegativeGradScaleSkipsTheUpdate) {
  Buffers s = fresh(1009);
  const at::Tensor before = s.weights.clone();
  adamw_(s.weights, s.remainder, s.m, s.v, normal({1009}, 2, at::kFloat), kArgs,
         update_control(1e-2, 1, -1.0));
  EXPECT_TRUE(at::equal(s.weights, before));
  EXPECT_TRUE(at::equal(s.m, at::zeros({1009})));
  EXPECT_TRUE(at::equal(s.v, at::zeros({1009})));
}

TEST(AdamW, ThrowsForInconsistentBuffers) {
  Buffers s = fresh(8);
  EXPECT_THROW(update(s, at::zeros({7}), 1), c10::Error);
  EXPECT_THROW(adamw_(s.weights, s.remainder, s.m, s.v, at::zeros({8}), kArgs, at::zeros({3})),
               c10::Error);
  Buffers halves = fresh(8);
  halves.weights = halves.weights.to(at::kBFloat16);  // remainder missing
  EXPECT_THROW(update(halves, at::zeros({8}), 1), c10::Error);
  halves.remainder = at::zeros({7}, at::kShort);
  EXPECT_THROW(update(halves, at::zeros({8}), 1), c10::Error);
}

TEST(GradScale, ClipsToTheLimitAndIsNegativeForNonFiniteValues) {
  const auto scale = [](double loss, double norm, double limit) {
    at::Tensor control = update_control(0.5, 7);
    set_grad_scale_(control, at::scalar_tensor(loss), at::scalar_tensor(norm), limit);
    EXPECT_EQ(control[0].item<double>(), 0.5);
    EXPECT_EQ(control[1].item<double>(), 7.0);
    return control[2].item<double>();
  };
  EXPECT_DOUBLE_EQ(scale(1, 4, 1), 0.25);
  EXPECT_EQ(scale(1, 0.5, 1), 1.0);
  EXPECT_EQ(scale(1, 0, 1), 1.0);
  EXPECT_EQ(scale(1, 4, 0), 1.0);
  EXPECT_EQ(scale(std::nan(""), 4, 1), -1.0);
  EXPECT_EQ(scale(1, std::nan(""), 1), -1.0);
  EXPECT_EQ(scale(1, std::numeric_limits<double>::infinity(), 0), -1.0);
}

TEST(SumOfSquares, MatchesFp64AtAnyThreadCount) {
  const int threads = at::get_num_threads();
  for (const int64_t size : {0, 1, 13, 16384, 200003}) {
    const at::Tensor x = normal({size}, 3, at::kFloat);
    const double want = x.to(at::kDouble).square().sum().item<double>();
    at::set_num_threads(1);
    const at::Tensor alone = sum_of_squares(x);
    at::set_num_threads(2);
    const at::Tensor shared = sum_of_squares(x);
    at::set_num_threads(threads);
    EXPECT_EQ(alone.scalar_type(), at::kDouble);
    EXPECT_EQ(alone.dim(), 0);
    EXPECT_NEAR(alone.item<double>(), want, 1e-13 * want);
    EXPECT_EQ(alone.item<double>(), shared.item<double>());
  }
}

TEST(SumOfSquares, AccumulatesInFp64AndPropagatesNan) {
  at::Tensor x = at::full({1 << 20}, 1e-3, at::kFloat);
  x[0] = 1e4;
  const double tiny = static_cast<double>(1e-3f) * static_cast<double>(1e-3f);
  EXPECT_NEAR(sum_of_squares(x).item<double>(), 1e8 + ((1 << 20) - 1) * tiny, 1e-5);
  x[777] = std::nan("");
  EXPECT_TRUE(std::isnan(sum_of_squares(x).item<double>()));
}

}  // namespace
}  // namespace stablemask::ops
