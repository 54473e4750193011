// AdamW with moments in bf16: stochastic rounding, and the kernels that do it.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "stablemask/ops/optimizer.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/bf16_moments.h"

namespace stablemask::ops {
namespace {

using testing::ExactUpdates;
using testing::normal;

/// Rounding with seed 1 in step 3, from element `first` on.
at::Tensor rounded(const at::Tensor& x, int64_t moment, int64_t step = 3, int64_t first = 0,
                   int64_t seed = 1) {
  AdamWArgs args;
  args.seed = seed;
  args.first = first;
  return reference::rounded_moment(x, args, step, moment);
}

/// Of the numbers between 1 and the next one in bf16, 1 + 2^-7.
at::Tensor copies_of(double share, int64_t count) {
  return at::full({count}, 1.0 + share / 128, at::kFloat);
}

/// Whether each copy was rounded up, as 0 and 1 minus the mean.
at::Tensor ups(const at::Tensor& rounded_copies) {
  const at::Tensor up = (rounded_copies.to(at::kDouble) - 1.0) * 128;
  EXPECT_TRUE(at::logical_or(up == 0.0, up == 1.0).all().item<bool>()) << "not a neighbour";
  return up - up.mean();
}

TEST(RoundedMoment, TheMeanIsTheNumber) {
  constexpr int64_t kCount = 1 << 16;
  for (const double share : {1.0 / 65536, 0.003, 0.25, 0.5, 0.71, 0.999}) {
    for (const int64_t moment : {0, 1}) {
      for (const int64_t step : {1, 2, 1000000}) {
        const at::Tensor x = copies_of(share, kCount);
        const double exact = (x[0].item<double>() - 1.0) * 128;
        const double found =
            ((rounded(x, moment, step).to(at::kDouble) - 1.0) * 128).mean().item<double>();
        const double sigma = std::sqrt(exact * (1 - exact) / kCount);
        EXPECT_NEAR(found, exact, 4 * sigma) << share << " of moment " << moment << ", " << step;
      }
    }
  }
}

TEST(RoundedMoment, ErrorsOfManyNumbersAddUpToNothing) {
  const at::Tensor x = normal({1 << 18}, 5, at::kFloat);
  // The unit in the last place is at most |x| / 128, and the largest deviation is half of it.
  const double sigma = (x / 256).norm().item<double>();
  for (const int64_t moment : {0, 1}) {
    const at::Tensor error = rounded(x, moment).to(at::kDouble) - x.to(at::kDouble);
    EXPECT_LT(std::abs(error.sum().item<double>()), 4 * sigma);
    EXPECT_TRUE((error.abs() <= x.abs() / 128).all().item<bool>());
  }
}

/// Two bits drawn independently of each other correlate by about 1 / sqrt(count).
TEST(RoundedMoment, BitsOfNeighboursStepsSeedsAndBothMomentsAreIndependent) {
  constexpr int64_t kCount = 1 << 18, kPage = int64_t{1} << 32;
  const at::Tensor x = copies_of(0.5, kCount);
  const at::Tensor base = ups(rounded(x, 0));
  const auto correlation = [&](const at::Tensor& other) {
    return (base * other).mean().item<double>() / 0.25;
  };
  const double bound = 4 / std::sqrt(static_cast<double>(kCount));
  for (const int64_t apart : {1, 2, 3, 4, 8, 64, 4096, 65536}) {
    EXPECT_LT(std::abs(correlation(ups(rounded(x, 0, 3, apart)))), bound) << apart << " apart";
  }
  for (const int64_t step : {1, 2, 4, 5, 6, 67, 1003}) {
    EXPECT_LT(std::abs(correlation(ups(rounded(x, 0, step)))), bound) << "step " << step;
  }
  for (const int64_t seed : {0, 2, 3, 1337}) {
    EXPECT_LT(std::abs(correlation(ups(rounded(x, 0, 3, 0, seed)))), bound) << "seed " << seed;
  }
  EXPECT_LT(std::abs(correlation(ups(rounded(x, 1)))), bound) << "m and v";
  EXPECT_LT(std::abs(correlation(ups(rounded(x, 0, 3, kPage)))), bound) << "2^32 apart";
}

TEST(RoundedMoment, WhatBf16HoldsStaysAndNothingFiniteBecomesInfinite) {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float largest = 0x1.FEp127f;  // of bf16
  const at::Tensor exact =
      at::tensor({0.0f, 1.0f, 1.5f, 0x1p-126f, 0x1p-133f, largest, kInf}, at::kFloat);
  for (const int64_t moment : {0, 1}) {
    for (const int64_t step : {1, 2, 3}) {
      for (const at::Tensor& x : {exact, -exact}) {
        const at::Tensor found = rounded(x, moment, step);
        EXPECT_TRUE(found.to(at::kFloat).equal(x));
        EXPECT_TRUE(at::signbit(found).equal(at::signbit(x)));
      }
      for (const float sign : {1.0f, -1.0f}) {
        const at::Tensor huge = rounded(at::full({4096}, sign * kMax, at::kFloat), moment, step);
        EXPECT_TRUE((huge.to(at::kFloat) == sign * largest).all().item<bool>());
      }
      const at::Tensor nan = at::tensor({0x7f800001, 0x7fffffff, -1}, at::kInt).view(at::kFloat);
      EXPECT_TRUE(rounded(nan, moment, step).isnan().all().item<bool>());
    }
  }
}

TEST(RoundedMoment, ThrowsForAnotherDtypeOrMoment) {
  EXPECT_THROW(rounded(at::zeros({2}, at::kDouble), 0), c10::Error);
  EXPECT_THROW(rounded(at::zeros({2}, at::kFloat), 2), c10::Error);
}

TEST(Bf16Moments, KernelHasTheBitsOfTheReference) {
  for (const int64_t size : {1, 7, 33000}) {
    for (const int64_t first : {int64_t{0}, (int64_t{1} << 32) - 5}) {
      ExactUpdates kernel(size, first), formula(size, first);
      kernel.run(Kernels::kFused);
      formula.run(Kernels::kReference);
      EXPECT_TRUE(kernel.m.equal(formula.m)) << size << " from " << first;
      EXPECT_TRUE(kernel.v.equal(formula.v)) << size << " from " << first;
      EXPECT_GE(kernel.v.min().item<double>(), 0);
    }
  }
}

TEST(Bf16Moments, SplitAndFp32WeightsHaveEqualBits) {
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    ExactUpdates whole(40009, 0), split(40009, 0);
    split.split();
    whole.run(kernels);
    split.run(kernels);
    EXPECT_TRUE(split.joined().equal(whole.weights));
    EXPECT_TRUE(split.m.equal(whole.m) && split.v.equal(whole.v));
  }
}

TEST(Bf16Moments, TheUpdateTakesTheMomentsBeforeTheyAreRounded) {
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    ExactUpdates bf16(5003, 0), fp32(5003, 0);
    fp32.m = fp32.m.to(at::kFloat);
    fp32.v = fp32.v.to(at::kFloat);
    bf16.run(kernels, 1);
    fp32.run(kernels, 1);
    EXPECT_FALSE(bf16.m.to(at::kFloat).equal(fp32.m));
    EXPECT_TRUE(bf16.weights.equal(fp32.weights));
  }
}

TEST(Bf16Moments, PartsAndThreadsDoNotChangeTheBits) {
  constexpr int64_t kSize = 70001;
  const int threads = at::get_num_threads();
  ExactUpdates whole(kSize, 0);
  whole.run(Kernels::kFused);
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    ExactUpdates parts(kSize, 0);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 33333}, {33333, kSize}}) {
      parts.part(begin, end).run(Kernels::kFused);
    }
    EXPECT_TRUE(parts.weights.equal(whole.weights) && parts.m.equal(whole.m)) << count;
    EXPECT_TRUE(parts.v.equal(whole.v)) << count;
  }
  at::set_num_threads(threads);
}

TEST(Bf16Moments, NegativeGradScaleSkipsTheUpdate) {
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    ExactUpdates state(1009, 0);
    state.run(kernels, 1);
    const at::Tensor m = state.m.clone(), v = state.v.clone(), weights = state.weights.clone();
    adamw_(state.weights, state.remainder, state.m, state.v, state.grads[1], state.args,
           update_control(1e-2, 2, -1.0), kernels);
    EXPECT_TRUE(state.m.equal(m) && state.v.equal(v) && state.weights.equal(weights));
  }
}

}  // namespace
}  // namespace stablemask::ops
