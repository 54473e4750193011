#include "stablemask/ops/ema.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "stablemask/ops/graph.h"
#include "stablemask/ops/optimizer.h"
#include "tests/ops/checks.h"

namespace stablemask::ops {
namespace {

using testing::normal;
using testing::relative_error;

constexpr double kDecay = 0.9;

/// Weights of one update; split if `halves`.
struct EmaWeights {
  EmaWeights(int64_t size, uint64_t seed, bool halves, at::Device device = at::kCPU) {
    whole = normal({size}, seed, at::kFloat).to(device);
    weights = whole;
    if (!halves) return;
    const SplitWeights split = split_weights(whole);
    weights = split.rounded;
    remainder = split.remainder;
  }
  void average_into(at::Tensor average, int64_t step, Kernels kernels = Kernels::kFused,
                    double decay = kDecay, double grad_scale = 0.5) const {
    const at::Tensor control = update_control(1e-3, step, grad_scale).to(whole.device());
    ema_(average, weights, remainder, decay, control, kernels);
  }
  EmaWeights part(int64_t begin, int64_t end) const {
    EmaWeights cut = *this;
    for (at::Tensor* x : {&cut.whole, &cut.weights, &cut.remainder}) {
      if (x->defined()) *x = x->slice(0, begin, end);
    }
    return cut;
  }
  at::Tensor whole, weights, remainder;
};

/// 20 updates from number `first` on; against average = d·average + (1 − d)·w in fp64.
void expect_formula(int64_t size, bool halves, Kernels kernels, int64_t first,
                    at::Device device = at::kCPU) {
  at::Tensor got = normal({size}, 1, at::kFloat).to(device);
  at::Tensor want = got.to(at::kCPU, at::kDouble);
  for (int64_t step = first; step < first + 20; ++step) {
    const EmaWeights weights(size, 100 + static_cast<uint64_t>(step), halves, device);
    weights.average_into(got, step, kernels);
    const auto t = static_cast<double>(step);
    const double d = std::min(kDecay, (1 + t) / (10 + t));
    want = d * want + (1 - d) * weights.whole.to(at::kCPU, at::kDouble);
  }
  EXPECT_LT(relative_error(got, want), 2e-7) << size << " from update " << first;
}

TEST(Ema, IsTheFormulaInBothLayoutsOfTheWeights) {
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    for (const bool halves : {false, true}) {
      for (const int64_t size : {1, 7, 16384, 40009}) expect_formula(size, halves, kernels, 1);
      expect_formula(1009, halves, kernels, 1000);  // beyond the first updates: the decay itself
    }
  }
}

TEST(Ema, ReferenceTakesFp64) {
  at::Tensor average = normal({100}, 1), before = average.clone();
  const at::Tensor weights = normal({100}, 2);
  reference::ema_(average, weights, {}, kDecay, update_control(0, 8));
  EXPECT_LT(relative_error(average, 0.5 * before + 0.5 * weights), 1e-15);  // (1 + 8) / (10 + 8)
}

TEST(Ema, WithoutDecayIsTheWeights) {
  for (const bool halves : {false, true}) {
    at::Tensor average = at::zeros({1009});
    const EmaWeights weights(1009, 2, halves);
    weights.average_into(average, 1, Kernels::kFused, 0.0);
    EXPECT_TRUE(at::equal(average, weights.whole));
  }
}

/// Weights that stay are reached: the decay's rounding in fp32 leaves no bias.
TEST(Ema, ApproachesWeightsThatStay) {
  const EmaWeights weights(64, 2, false);
  at::Tensor average = at::zeros({64});
  for (int step = 0; step < 3000; ++step) {
    weights.average_into(average, 1'000'000, Kernels::kFused, 0.99);
  }
  EXPECT_LT(relative_error(average, weights.whole), 1e-5);
}

/// In parts, with other threads, and again.
void expect_same_bits_in_parts(bool halves, at::Device device = at::kCPU) {
  const EmaWeights weights(70001, 2, halves, device);
  const at::Tensor start = normal({70001}, 3, at::kFloat).to(device);
  const at::Tensor whole = start.clone(), parts = start.clone();
  weights.average_into(whole, 5);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 33333}, {33333, 70001}}) {
    weights.part(begin, end).average_into(parts.slice(0, begin, end), 5);
  }
  EXPECT_TRUE(at::equal(whole, parts)) << "split " << halves;
}

TEST(Ema, PartsAreBitwiseEqualToTheWholeAtAnyThreadCount) {
  const int threads = at::get_num_threads();
  for (const bool halves : {false, true}) {
    for (const int count : {1, 3}) {
      at::set_num_threads(count);
      expect_same_bits_in_parts(halves);
    }
  }
  at::set_num_threads(threads);
}

TEST(Ema, SkippedUpdateChangesNothing) {
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    const EmaWeights weights(1009, 2, true);
    const at::Tensor start = normal({1009}, 3, at::kFloat), average = start.clone();
    weights.average_into(average, 5, kernels, kDecay, -1.0);
    EXPECT_TRUE(at::equal(average, start));
  }
}

TEST(Ema, ThrowsForInconsistentArguments) {
  at::Tensor average = at::zeros({8});
  const at::Tensor weights = at::zeros({8}), control = update_control(0, 1);
  const auto refused = [&](const at::Tensor& w, const at::Tensor& low, double decay,
                           const at::Tensor& c) {
    EXPECT_THROW(ema_(average, w, low, decay, c), c10::Error);
    EXPECT_THROW(reference::ema_(average, w, low, decay, c), c10::Error);
  };
  refused(at::zeros({7}), {}, 0.5, control);
  refused(weights.to(at::kBFloat16), {}, 0.5, control);
  refused(weights.to(at::kBFloat16), at::zeros({7}, at::kShort), 0.5, control);
  refused(weights, at::zeros({8}, at::kShort), 0.5, control);
  refused(at::zeros({8, 2}).select(1, 0), {}, 0.5, control);
  refused(weights, {}, 1.0, control);
  refused(weights, {}, -0.1, control);
  refused(weights, {}, NAN, control);
  refused(weights, {}, 0.5, at::zeros({3}));
  refused({}, {}, 0.5, control);
  average = at::zeros({8}, at::kDouble);
  refused(weights, {}, 0.5, control);
  EXPECT_THROW(ema_(average, weights.to(at::kDouble), {}, 0.5, control), c10::Error);
}

class GpuEma : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(GpuEma, IsTheFormulaInBothLayoutsOfTheWeights) {
  for (const bool halves : {false, true}) {
    for (const int64_t size : {1, 3, 4, 1023, 4097, 3000001}) {
      expect_formula(size, halves, Kernels::kFused, 1, at::kCUDA);
    }
    expect_formula(100003, halves, Kernels::kFused, 1000, at::kCUDA);
    expect_same_bits_in_parts(halves, at::kCUDA);
  }
}

TEST_F(GpuEma, ReplayedGraphReadsTheUpdatesNumberAndItsSkipping) {
  const EmaWeights weights(5003, 2, true, at::kCUDA);
  at::Tensor control = update_control(0, 1).to(at::kCUDA);
  const at::Tensor start = normal({5003}, 3, at::kFloat).to(at::kCUDA);
  at::Tensor average = start.clone(), want = start.clone();
  Graph graph(at::kCUDA);
  const Graph::OnItsStream on_stream(graph);
  graph.record([&] { ema_(average, weights.weights, weights.remainder, kDecay, control); });
  for (const int64_t step : {1, 2, 500}) {
    control.copy_(update_control(0, step));
    graph.replay();
    weights.average_into(want, step);
    EXPECT_TRUE(at::equal(average, want)) << step;
  }
  control.copy_(update_control(0, 501, -1.0));
  graph.replay();
  EXPECT_TRUE(at::equal(average, want)) << "skipped";
}

}  // namespace
}  // namespace stablemask::ops
