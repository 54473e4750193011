#include "stablemask/ops/stable_mask.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/ops/checks.h"

namespace stablemask::ops {
namespace {

using testing::check_gradients;
using testing::Tensors;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

at::Tensor list(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

PseudoScores fixed(const at::Tensor& gamma, double p_base, int64_t n) {
  return {gamma, at::full_like(gamma, p_base), {MaskLength::Kind::kFixed, n}};
}

/// log Σ_{j=i+1}^{N−1} e^{p − γ(j−i−1)}, term by term from the smallest.
double literal_log_mass(double gamma, double p_base, int64_t row, int64_t n) {
  long double sum = 0;
  for (int64_t j = n - 1; j > row; --j) {
    sum += std::exp(static_cast<long double>(p_base) -
                    static_cast<long double>(gamma) * (j - row - 1));
  }
  return sum > 0 ? static_cast<double>(std::log(sum)) : -kInfinity;
}

TEST(AlibiSlopes, PowerOfTwoHeadsAreGeometric) {
  const at::Tensor slopes = alibi_slopes(8);
  for (int64_t h = 0; h < 8; ++h)
    EXPECT_EQ(slopes[h].item<float>(), std::exp2(-static_cast<float>(h + 1)));
  EXPECT_EQ(alibi_slopes(1)[0].item<float>(), std::exp2(-8.0f));
}

TEST(AlibiSlopes, TwelveHeadsInterleaveTheNextPowerOfTwo) {
  const at::Tensor slopes = alibi_slopes(12);
  for (int64_t h = 0; h < 8; ++h)
    EXPECT_EQ(slopes[h].item<float>(), alibi_slopes(8)[h].item<float>());
  for (int64_t h = 0; h < 4; ++h) {
    EXPECT_EQ(slopes[8 + h].item<float>(), alibi_slopes(16)[2 * h].item<float>());
  }
}

TEST(LogPseudoMass, ClosedFormEqualsTheLiteralSum) {
  const std::vector<double> gammas = {0, 1e-12, 1e-6, 1e-3, 0.0625, 0.24, 0.26, 1, 5, 40};
  for (const int64_t n : {1, 2, 3, 17, 1024}) {
    const at::Tensor mass = log_pseudo_mass(fixed(list(gammas), -0.7, n), n + 3);
    for (size_t h = 0; h < gammas.size(); ++h) {
      for (const int64_t row : {int64_t{0}, n / 2, n - 2, n - 1, n, n + 2}) {
        if (row < 0) continue;
        const double got = mass[static_cast<int64_t>(h)][row].item<double>();
        const double want = literal_log_mass(gammas[h], -0.7, row, n);
        if (want == -kInfinity) {
          EXPECT_EQ(got, want) << "row " << row << " of " << n;
        } else {
          EXPECT_NEAR(got, want, 1e-12) << "gamma " << gammas[h] << " row " << row << " of " << n;
        }
      }
    }
  }
}

TEST(LogPseudoMass, MatchesFp64ForAlibiSlopesInFp32) {
  const at::Tensor slopes = alibi_slopes(12);
  const at::Tensor mass = log_pseudo_mass(fixed(slopes, 0.5, 2048), 2048);
  for (int64_t h = 0; h < 12; ++h) {
    for (const int64_t row : {0, 1, 1000, 2046}) {
      const double want = literal_log_mass(slopes[h].item<float>(), 0.5, row, 2048);
      EXPECT_NEAR(mass[h][row].item<float>(), want, 2e-6 * std::max(1.0, std::abs(want)));
    }
  }
}

TEST(LogPseudoMass, OffsetSelectsTheRowsOfALongerBlock) {
  const PseudoScores pseudo = fixed(list({0.1, 2}), 0, 50);
  EXPECT_TRUE(at::equal(log_pseudo_mass(pseudo, 20, 13), log_pseudo_mass(pseudo, 33).slice(1, 13)));
}

TEST(LogPseudoMass, AcceptsPositionsOfAnyShape) {
  const PseudoScores pseudo = fixed(list({0.1, 2, 0}), 0, 9);
  const at::Tensor positions = at::tensor({0, 1, 0, 7, 8, 3}, at::kLong).view({2, 3});
  const at::Tensor mass = log_pseudo_mass(pseudo, positions, 0);
  const at::Tensor rows = log_pseudo_mass(pseudo, 9);
  ASSERT_EQ(mass.sizes(), at::IntArrayRef({3, 2, 3}));
  EXPECT_TRUE(at::equal(mass.view({3, 6}), rows.index_select(1, positions.view({-1}))));
}

TEST(LogPseudoMass, InfiniteLengthIsTheLimitAndConstantOverRows) {
  PseudoScores pseudo = fixed(list({0.05, 1}), 0.3, 4000);
  const at::Tensor limit = log_pseudo_mass(pseudo, 1);
  pseudo.length.kind = MaskLength::Kind::kInfinite;
  const at::Tensor mass = log_pseudo_mass(pseudo, 5, 1000);
  EXPECT_TRUE(at::allclose(mass, limit.expand({2, 5}), 1e-13, 1e-13));
}

TEST(LogPseudoMass, RowsBeyondTheMaskLengthContinueWithTheInfiniteOne) {
  PseudoScores pseudo = fixed(list({0.05, 1}), 0.3, 9);
  const at::Tensor none = log_pseudo_mass(pseudo, 14);
  pseudo.length.infinite_beyond = true;
  const at::Tensor mass = log_pseudo_mass(pseudo, 14);
  EXPECT_TRUE(at::equal(mass.slice(1, 0, 9), none.slice(1, 0, 9)));
  EXPECT_EQ(mass[0][8].item<double>(), -kInfinity);  // row N−1 has no slot and is not beyond N
  pseudo.length = {MaskLength::Kind::kInfinite, 0};
  EXPECT_TRUE(at::equal(mass.slice(1, 9), log_pseudo_mass(pseudo, 5)));
}

TEST(LogPseudoMass, SequenceLengthIsTheBlockLength) {
  PseudoScores pseudo = fixed(list({0.05, 1}), 0.3, 21);
  const at::Tensor want = log_pseudo_mass(pseudo, 21);
  pseudo.length = {MaskLength::Kind::kSequence, 0};
  EXPECT_TRUE(at::equal(log_pseudo_mass(pseudo, 21), want));
}

TEST(LogPseudoMass, GradientsEqualCentralDifferences) {
  const at::Tensor gamma = list({1e-3, 0.2, 0.3, 2}), p_base = list({0, 0.5, -1, 0.1});
  for (const int64_t n : {2, 9, 300}) {
    check_gradients(
        [n](const Tensors& x) {
          const PseudoScores pseudo{x[0], x[1], {MaskLength::Kind::kFixed, n}};
          return log_pseudo_mass(pseudo, n - 1);
        },
        {gamma, p_base}, 1e-6);
  }
  check_gradients(
      [](const Tensors& x) {
        const at::Tensor mass =
            log_pseudo_mass({x[0], x[1], {MaskLength::Kind::kFixed, 4, true}}, 7);
        return at::cat({mass.slice(1, 0, 3), mass.slice(1, 4)}, 1);  // row 3 is -inf
      },
      {gamma + 0.1, p_base}, 1e-6);
  check_gradients(
      [](const Tensors& x) {
        return log_pseudo_mass({x[0], x[1], {MaskLength::Kind::kInfinite, 0}}, 3);
      },
      {gamma + 0.1, p_base}, 1e-6);
}

TEST(LogPseudoMass, GradientAtZeroGammaAndBeyondTheMaskIsFinite) {
  const at::Tensor gamma = list({0}).requires_grad_();
  const at::Tensor mass =
      log_pseudo_mass({gamma, list({0}), {MaskLength::Kind::kFixed, 5}}, 7).slice(1, 0, 4);
  const at::Tensor grad = torch::autograd::grad({mass.sum()}, {gamma})[0];
  const at::Tensor beyond =
      log_pseudo_mass({gamma, list({0}), {MaskLength::Kind::kFixed, 5, true}}, 7);
  EXPECT_EQ(beyond[0][5].item<double>(), kInfinity);
  const at::Tensor finite = beyond.slice(1, 0, 4);
  EXPECT_TRUE(at::equal(torch::autograd::grad({finite.sum()}, {gamma})[0], grad));
  // d/dγ log Σ_{d<n} e^{−γd} at 0 is −(n−1)/2, n = 4, 3, 2, 1.
  EXPECT_NEAR(grad.item<double>(), -(3 + 2 + 1 + 0) / 2.0, 1e-12);
}

TEST(PseudoMask, MatchesTheFormulaAndSumsToTheMass) {
  const PseudoScores pseudo{list({0.5, 0}), list({-0.2, 0.1}), {MaskLength::Kind::kFixed, 7}};
  const at::Tensor p = pseudo_mask(pseudo, 5, 10);
  ASSERT_EQ(p.sizes(), at::IntArrayRef({2, 5, 10}));
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t j = 0; j < 10; ++j) {
      const double want = j > i && j <= 6 ? -0.2 - 0.5 * static_cast<double>(j - i - 1) : 0.0;
      EXPECT_DOUBLE_EQ(p[0][i][j].item<double>(), want) << i << ", " << j;
    }
  }
  const at::Tensor slots = at::ones({5, 10}, at::kBool).triu(1).slice(1, 0, 7);
  const at::Tensor mass =
      p.slice(2, 0, 7).masked_fill(at::logical_not(slots), -kInfinity).logsumexp(2);
  EXPECT_TRUE(at::allclose(mass, log_pseudo_mass(pseudo, 5), 1e-13, 1e-13));
}

TEST(MaskRatio, IsTheShareOfPseudoSlotsAndDecreases) {
  const at::Tensor mass = log_pseudo_mass(fixed(list({0.1}), 0, 32), 32);
  const at::Tensor lse = at::log(at::arange(1, 33, at::kDouble)).unsqueeze(0);
  const at::Tensor ratio = mask_ratio(lse, mass);
  EXPECT_TRUE(at::allclose(ratio, mass.exp() / (mass.exp() + lse.exp()), 1e-13, 1e-15));
  EXPECT_TRUE((ratio.slice(1, 1) < ratio.slice(1, 0, 31)).all().item<bool>());
  EXPECT_EQ(ratio[0][31].item<double>(), 0.0);
}

TEST(PseudoScoresContract, ThrowsForInconsistentShapes) {
  const PseudoScores pseudo{list({1, 2}), list({0}), {MaskLength::Kind::kFixed, 4}};
  EXPECT_THROW(log_pseudo_mass(pseudo, 4), c10::Error);
  EXPECT_THROW(log_pseudo_mass(fixed(list({1}), 0, -1), 4), c10::Error);
}

}  // namespace
}  // namespace stablemask::ops
