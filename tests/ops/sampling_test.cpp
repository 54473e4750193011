#include "stablemask/ops/sampling.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "src/ops/sampling_rules.h"
#include "tests/ops/sampling_cases.h"

namespace stablemask::ops {
namespace {

using at::Tensor;
using testing::combinations;
using testing::Draw;
using testing::kKinds;
using testing::random_draws;
using testing::random_logits;
using testing::random_seen;
using testing::sampling_of;

int64_t draw_one(const Tensor& logits, const Draw& draw) {
  return sample(logits.unsqueeze(0), logits.size(0), sampling_of({draw})).item<int64_t>();
}

constexpr int kDraws = 20000;

/// How often each id is drawn with seeds 0 to kDraws − 1.
std::vector<int64_t> counts_of(const Tensor& logits, Draw draw) {
  std::vector<Draw> draws(kDraws, draw);
  for (int i = 0; i < kDraws; ++i) draws[i].seed = i;
  const Tensor ids =
      sample(logits.expand({kDraws, -1}).contiguous(), logits.size(0), sampling_of(draws));
  std::vector<int64_t> counts(logits.size(0));
  for (int i = 0; i < kDraws; ++i) ++counts[ids[i].item<int64_t>()];
  return counts;
}

/// Pearson's statistic; infinite if an id without probability was drawn.
double chi_square(const std::vector<int64_t>& counts, std::vector<double> weights) {
  double sum = 0, statistic = 0;
  for (const double weight : weights) sum += weight;
  for (size_t id = 0; id < counts.size(); ++id) {
    const double expected = kDraws * weights[id] / sum;
    if (expected == 0 && counts[id] == 0) continue;
    const double difference = static_cast<double>(counts[id]) - expected;
    statistic += expected == 0 ? HUGE_VAL : difference * difference / expected;
  }
  return statistic;
}

TEST(SamplingRules, MassesAreExponentialsAndNeverRise) {
  constexpr sampling::Powers kPowers;
  uint64_t before = sampling::mass(0, kPowers.of);
  EXPECT_EQ(before, sampling::kOne);
  const auto check = [&](double z) {
    const uint64_t mass = sampling::mass(z, kPowers.of);
    const long double truth = exp2l(40 - static_cast<long double>(z));
    EXPECT_NEAR(static_cast<double>(mass - truth), 0.0, 0.5 + 1.0 / 32) << z;
    EXPECT_LE(mass, before) << z;
    before = mass;
  };
  for (int i = 1; i <= 100000; ++i) check(i * 4.2e-4);
  before = sampling::kOne;
  for (int j = 1; j < 128; ++j) {  // on both sides of each entry of the table
    for (const double step : {-0x1p-44, 0.0, 0x1p-44}) check(j / 128.0 + step);
  }
  EXPECT_EQ(sampling::mass(40.99, kPowers.of), 1u);
  for (const double z : {41.0, 1e300, HUGE_VAL, std::nan("")}) {
    EXPECT_EQ(sampling::mass(z, kPowers.of), 0u) << z;
  }
}

TEST(SamplingRules, SharesAreExact) {
  constexpr uint64_t kWhole = (uint64_t{1} << 61) + 12345;
  EXPECT_EQ(sampling::share_of(1.0, kWhole), kWhole);
  EXPECT_EQ(sampling::share_of(0.5, kWhole), (kWhole + 1) / 2);
  EXPECT_EQ(sampling::share_of(0.9, 10), 10u) << "0.9 in fp64 is above 9/10";
  EXPECT_EQ(sampling::share_of(0.7, 10), 7u) << "0.7 in fp64 is below 7/10";
  EXPECT_EQ(sampling::share_of(DBL_TRUE_MIN, kWhole), 1u);
  EXPECT_EQ(sampling::share_of(0x1p-61, kWhole), 2u);
  EXPECT_EQ(sampling::share_of(0.0, kWhole), 0u);
  EXPECT_EQ(sampling::share_of(std::nan(""), kWhole), 0u);
}

TEST(Sampling, GreedyTakesTheLowestIdOfEqualOnes) {
  const Draw greedy{.temperature = 0};
  EXPECT_EQ(draw_one(at::tensor({1.0f, 3.0f, 3.0f}), greedy), 1);
  EXPECT_EQ(draw_one(at::tensor({-0.0f, 0.0f}), greedy), 0);
  EXPECT_EQ(draw_one(at::tensor({-FLT_MAX, -1e38f, FLT_MIN}), greedy), 2);
  EXPECT_EQ(draw_one(at::tensor({1.0f, 3.0f, 3.001f}).to(at::kBFloat16), greedy), 1);
  EXPECT_EQ(draw_one(at::tensor({7.0f}), greedy), 0);
}

TEST(Sampling, DrawsAsOftenAsTheProbabilitiesSay) {
  const Tensor logits = at::tensor({0.0f, 2.0f, -1.0f, 1.0f, 2.0f, -4.0f, 0.5f});
  const auto weights = [&](double temperature, const std::vector<int>& kept) {
    std::vector<double> result(7);
    for (const int id : kept) result[id] = std::exp(logits[id].item<double>() / temperature);
    return result;
  };
  // One in a million at 6 degrees of freedom, fewer have less; neighbouring rules are far above it.
  constexpr double kBound = 38;
  const std::vector<int> all = {0, 1, 2, 3, 4, 5, 6};
  auto counts = counts_of(logits, {});
  EXPECT_LT(chi_square(counts, weights(1, all)), kBound);
  EXPECT_GT(chi_square(counts, weights(1.1, all)), kBound);
  counts = counts_of(logits, {.temperature = 1.7});
  EXPECT_LT(chi_square(counts, weights(1.7, all)), kBound);
  counts = counts_of(logits, {.top_k = 3});
  EXPECT_LT(chi_square(counts, weights(1, {1, 4, 3})), kBound);
  // Weights 7.39 7.39 2.72 1.65 1 0.37 0.02 of 20.53: the first two hold 0.72 of it, three 0.85.
  counts = counts_of(logits, {.top_p = 0.75});
  EXPECT_LT(chi_square(counts, weights(1, {1, 4, 3})), kBound);
  counts = counts_of(logits, {.min_p = 0.2});
  EXPECT_LT(chi_square(counts, weights(1, {1, 4, 3, 6})), kBound);
  counts = counts_of(logits, {.temperature = 1.7, .top_k = 5, .top_p = 0.9, .min_p = 0.3});
  EXPECT_LT(chi_square(counts, weights(1.7, {1, 4, 3, 6})), kBound);
}

TEST(Sampling, TopKKeepsTheLowestIdsOfEqualOnes) {
  const std::vector<int64_t> counts =
      counts_of(at::tensor({1.0f, 5.0f, 5.0f, 2.0f, 5.0f}), {.top_k = 2});
  EXPECT_EQ(counts[1] + counts[2], kDraws);
  EXPECT_GT(counts[2], kDraws / 3);
}

TEST(Sampling, TopPIsOfWhatTopKKept) {
  // Equal logits: of 4 kept ids 0.75 are three, of all 8 six.
  const Tensor logits = at::zeros({8});
  const auto drawn = [&](const Draw& draw) {
    const std::vector<int64_t> counts = counts_of(logits, draw);
    return 8 - std::count(counts.begin(), counts.end(), 0);
  };
  EXPECT_EQ(drawn({.top_k = 4, .top_p = 0.75}), 3);
  EXPECT_EQ(drawn({.top_p = 0.75}), 6);
  EXPECT_EQ(drawn({.top_p = 0.7500001}), 7);
  EXPECT_EQ(drawn({.top_p = 1e-300}), 1);
}

TEST(Sampling, MinPIsAShareOfTheLikeliest) {
  const Tensor logits = at::tensor({std::log(0.09f), 0.0f, std::log(0.11f), std::log(0.1001f)});
  EXPECT_EQ(counts_of(logits, {.min_p = 0.1})[0], 0);
  EXPECT_GT(counts_of(logits, {.min_p = 0.1})[3], 0);
  EXPECT_EQ(counts_of(logits, {.min_p = 1.0})[1], kDraws);
}

TEST(Sampling, PenaltyDividesPositiveLogitsAndMultipliesOthers) {
  const Draw greedy{.temperature = 0, .penalty = 2};
  const auto with_seen = [&](std::vector<float> logits, std::vector<uint8_t> seen) {
    Sampling s = sampling_of({greedy});
    s.seen = at::tensor(seen).unsqueeze(0);
    return sample(at::tensor(logits).unsqueeze(0), s.seen.size(1), s).item<int64_t>();
  };
  EXPECT_EQ(with_seen({4, 2.5, 1}, {1, 0, 0}), 1);
  EXPECT_EQ(with_seen({4, 1.5, 1}, {1, 0, 0}), 0);
  EXPECT_EQ(with_seen({-1, -1.5}, {1, 0}), 1) << "-1 becomes -2";
  EXPECT_EQ(with_seen({-1, -1.5}, {1, 1}), 0);
  EXPECT_EQ(with_seen({4, 2.5}, {0, 0}), 0);
}

TEST(Sampling, MarksTheDrawnIdInItsRow) {
  Sampling s = sampling_of(std::vector<Draw>(3, {.temperature = 0}));
  s.seen = at::zeros({5, 4}, at::kByte);
  s.rows = at::tensor({int64_t{4}, int64_t{0}, int64_t{2}});
  Tensor logits = at::eye(4).narrow(0, 0, 3).contiguous();
  logits[2][0] = std::nanf("");
  EXPECT_TRUE(sample(logits, 4, s).equal(at::tensor({int64_t{0}, int64_t{1}, int64_t{-1}})));
  Tensor expected = at::zeros({5, 4}, at::kByte);
  expected[4][0] = 1;
  expected[0][1] = 1;
  EXPECT_TRUE(s.seen.equal(expected));
}

TEST(Sampling, LogitsThatAreNotFiniteGiveMinusOne) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      Tensor logits = at::tensor({1.0f, 3.0f, bad, 2.0f}).to(type);
      for (const double temperature : {0.0, 1.0}) {
        EXPECT_EQ(draw_one(logits, {.temperature = temperature}), -1) << bad;
        const Sampling s = sampling_of({{.temperature = temperature, .top_k = 1}});
        EXPECT_EQ(sample(logits.unsqueeze(0), 2, s).item<int64_t>(), 1) << "padding is not read";
      }
    }
  }
}

TEST(Sampling, ARowDoesNotDependOnTheOthers) {
  constexpr int64_t kColumns = 700, kVocabulary = 690;
  for (int kind = 0; kind < kKinds; ++kind) {
    const std::vector<Draw> draws = random_draws(40, kVocabulary, 5 + kind);
    const Tensor logits = random_logits(kind, 40, kColumns, kind);
    Sampling s = sampling_of(draws);
    const Tensor seen = random_seen(40, kColumns, 9);
    s.seen = seen.clone();
    const Tensor together = sample(logits, kVocabulary, s);
    for (size_t b = 0; b < draws.size(); ++b) {
      Sampling alone = sampling_of({draws[b]});
      alone.seen = seen[b].clone().unsqueeze(0);
      EXPECT_EQ(sample(logits[b].unsqueeze(0), kVocabulary, alone).item<int64_t>(),
                together[b].item<int64_t>());
      EXPECT_LT(together[b].item<int64_t>(), kVocabulary);
    }
  }
}

TEST(Sampling, TakesExtremeSettingsAndLogits) {
  const Tensor far = at::tensor({-FLT_MAX, FLT_MAX, 0.0f});
  for (const double temperature : {1e-300, DBL_TRUE_MIN, 1.0, 1e30}) {
    EXPECT_EQ(draw_one(far, {.temperature = temperature, .top_p = 0.99}), 1) << temperature;
  }
  const double infinity = HUGE_VAL;
  EXPECT_GT(counts_of(far, {.temperature = infinity})[0], kDraws / 4) << "all are equally likely";
  // Equal logits and all 53 bits: the last id can be drawn, and none beyond it.
  std::vector<Draw> draws = random_draws(200, 151936, 3);
  for (Draw& draw : draws) draw = {.temperature = 0.7, .seed = draw.seed};
  const Tensor equal = at::zeros({1, 151936}).expand({200, -1});
  const Tensor ids = sample(equal.contiguous(), 151936, sampling_of(draws));
  EXPECT_GT(ids.max().item<int64_t>(), 151936 * 9 / 10);
  EXPECT_LT(ids.min().item<int64_t>(), 151936 / 10);
}

TEST(Sampling, RefusesWhatItsContractExcludes) {
  const Tensor logits = at::zeros({2, 5});
  const auto refuses = [&](const Tensor& x, int64_t vocabulary, auto change) {
    Sampling s = sampling_of(std::vector<Draw>(2));
    s.seen = at::zeros({2, 5}, at::kByte);
    change(s);
    EXPECT_THROW(sample(x, vocabulary, s), c10::Error);
  };
  const auto keep = [](Sampling&) {};
  refuses(logits.to(at::kDouble), 5, keep);
  refuses(logits[0], 5, keep);
  refuses(Tensor(), 5, keep);
  refuses(at::zeros({5, 2}).t(), 5, keep);
  refuses(logits, 6, keep);
  refuses(logits, 0, keep);
  refuses(logits, 5, [](Sampling& s) { s.temperature = s.temperature.to(at::kFloat); });
  refuses(logits, 5, [](Sampling& s) { s.top_k = Tensor(); });
  refuses(logits, 5, [](Sampling& s) { s.top_p = s.top_p.narrow(0, 0, 1); });
  refuses(logits, 5, [](Sampling& s) { s.drawn = at::zeros({4}, at::kLong).slice(0, 0, 4, 2); });
  refuses(logits, 5, [](Sampling& s) { s.seen = s.seen.narrow(1, 0, 4).contiguous(); });
  refuses(logits, 5, [](Sampling& s) { s.seen = s.seen.narrow(0, 0, 1); });
  refuses(logits, 5, [](Sampling& s) { s.rows = at::tensor({int64_t{0}, int64_t{2}}); });
  refuses(logits, 5, [](Sampling& s) { s.rows = at::tensor({int64_t{-1}, int64_t{0}}); });
  EXPECT_EQ(sample(at::zeros({0, 5}), 5, sampling_of({})).sizes(), at::IntArrayRef({0}));
}

/// Writes one case for sampling.py, which describes the format.
void write_case(std::ofstream& file, const Tensor& logits, const Tensor& seen, int64_t vocabulary,
                const Draw& draw, int64_t id) {
  const int64_t integers[] = {logits.size(0), vocabulary, draw.top_k, draw.drawn, draw.seed, id};
  const double numbers[] = {draw.temperature, draw.top_p, draw.min_p, draw.penalty};
  const auto write = [&](const void* from, size_t bytes) {
    file.write(static_cast<const char*>(from), static_cast<std::streamsize>(bytes));
  };
  write(integers, sizeof(integers));
  write(numbers, sizeof(numbers));
  const Tensor x = logits.to(at::kFloat).contiguous(), marks = seen.contiguous();
  write(x.const_data_ptr(), x.nbytes());
  write(marks.const_data_ptr(), marks.nbytes());
}

TEST(Sampling, DrawsWhatAPlainNumPyProgramDraws) {
  const std::string cases = ::testing::TempDir() + "sampling_cases.bin";
  std::ofstream file(cases, std::ios::binary);
  for (int kind = 0; kind < kKinds; ++kind) {
    const int64_t columns = kind == 0 ? 1500 : 60 + 23 * kind, vocabulary = columns - kind;
    const std::vector<Draw> draws = combinations(vocabulary);
    const auto rows = static_cast<int64_t>(draws.size());
    const Tensor logits = random_logits(kind, rows, columns, 100 + kind);
    const Tensor seen = random_seen(rows, columns, 200 + kind);
    Sampling s = sampling_of(draws);
    s.seen = seen.clone();
    const Tensor ids = sample(logits, vocabulary, s);
    for (int64_t b = 0; b < rows; ++b) {
      write_case(file, logits[b], seen[b], vocabulary, draws[static_cast<size_t>(b)],
                 ids[b].item<int64_t>());
    }
  }
  file.close();
  const std::string program = STABLEMASK_SOURCE_DIR "/tests/ops/sampling.py";
  const int status = std::system((STABLEMASK_PEER_PYTHON " " + program + " " + cases).c_str());
  std::remove(cases.c_str());
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << STABLEMASK_PEER_PYTHON " has no numpy";
  EXPECT_EQ(status, 0) << "see the lines above";
}

}  // namespace
}  // namespace stablemask::ops
