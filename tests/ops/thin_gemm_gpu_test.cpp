#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "src/ops/cuda/fused_gemm.h"
#include "src/ops/cuda/projections.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/overlap.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/gpu_errors.h"

/// Products of few rows against separate ops in fp64; separate ops in bf16 set the tolerance.
namespace stablemask::ops {
namespace {

using namespace testing_gpu;
using at::Tensor;

class ThinGemmGpu : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    if (!cuda::fused_gemm_runs_here()) GTEST_SKIP() << "no GPU of compute capability 9.0";
  }
};

Tensor few(at::IntArrayRef shape, double scale = 1.0) {
  return random(shape, at::kBFloat16, scale);
}

Tensor weight_of(int64_t columns, int64_t inner) {
  return few({columns, inner}, 2.0 / std::sqrt(static_cast<double>(inner)));
}

constexpr double kEps = 1e-5;

/// The ends of the ranges of rows that a kernel serves.
const std::vector<int64_t> kRows = {1, 2, 7, 8, 9, 16, 17, 32};

/// {columns, inner}: minimal sizes, columns that leave a part of a tile, inner that leaves a part
/// of a step (32), of the warps (256) and of a stage (1024).
const std::vector<std::array<int64_t, 2>> kShapes = {
    {1, 8},      {7, 8},      {8, 40},   {13, 104},  {131, 256},  {768, 768},
    {100, 1032}, {515, 2048}, {3, 2056}, {97, 5632}, {1201, 512}, {33, 8192}};

template <typename F>
void for_each_shape(const F& f) {
  int served = 0;
  for (const auto& [columns, inner] : kShapes) {
    for (const int64_t rows : kRows) {
      const Tensor x = few({rows, inner}), weight = weight_of(columns, inner);
      if (!cuda::thin_projection_serves(x, weight, {})) continue;
      ++served;
      SCOPED_TRACE(describe("rows, columns, inner", {rows, columns, inner}, at::kBFloat16));
      f(x, weight);
    }
  }
  EXPECT_EQ(served, 12 * 4 + 10 * 4);
}

Tensor thin(const Tensor& x, const Tensor& weight, const cuda::ThinOptions& options) {
  Tensor out = poisoned({x.size(0), weight.size(0) / (options.gated ? 2 : 1)}, at::kBFloat16);
  cuda::thin_projection(x, weight, options, out);
  return out;
}

TEST_F(ThinGemmGpu, ProductIsAsAccurateAsLibTorchs) {
  for_each_shape([](const Tensor& x, const Tensor& weight) {
    const Tensor none;
    const Tensor truth = at::mm(wide(x), wide(weight).t());
    expect_as_exact(thin(x, weight, {none, none, 0, false}), at::mm(x, weight.t()), truth, "mm");
    const Tensor residual = few(truth.sizes());
    expect_as_exact(thin(x, weight, {residual, none, 0, false}), at::addmm(residual, x, weight.t()),
                    truth + wide(residual), "addmm");
  });
}

TEST_F(ThinGemmGpu, SwigluIsAsAccurateAsSeparateOps) {
  for_each_shape([](const Tensor& x, const Tensor& some) {
    const Tensor none;
    const Tensor weight = weight_of(2 * some.size(0), x.size(1));
    const Tensor eager = at::mm(x, weight.t()), truth = at::mm(wide(x), wide(weight).t());
    expect_as_exact(thin(x, weight, {none, none, 0, true}), reference::swiglu(eager),
                    reference::swiglu(truth), "swiglu");
  });
}

TEST_F(ThinGemmGpu, NormHasTheBitsOfSeparateKernels) {
  for_each_shape([](const Tensor& x, const Tensor& weight) {
    const Tensor norm = few({x.size(1)}), none;
    for (const Tensor& scale : {norm, norm.to(at::kFloat) * 1.1}) {
      const Tensor normed = rms_norm(x, scale, kEps);
      EXPECT_TRUE(at::equal(thin(x, weight, {none, scale, kEps, false}),
                            thin(normed, weight, {none, none, 0, false})));
    }
  });
}

TEST_F(ThinGemmGpu, RowsDoNotDependOnTheOtherRows) {
  const Tensor none;
  for (const auto& [columns, inner] : kShapes) {
    SCOPED_TRACE(describe("columns, inner", {columns, inner}, at::kBFloat16));
    const int64_t most = inner > 4096 ? 8 : 32;
    const Tensor x = few({most, inner}), weight = weight_of(columns, inner);
    const Tensor all = thin(x, weight, {none, none, 0, false});
    for (const int64_t rows : {1, 5, 8, 11, 16, 29}) {
      if (rows > most) continue;
      EXPECT_TRUE(at::equal(thin(x.narrow(0, most - rows, rows), weight, {none, none, 0, false}),
                            all.narrow(0, most - rows, rows)))
          << rows;
    }
    Tensor others = few({most, inner});
    others[1].fill_(kNan);
    others[0].copy_(x[most - 1]);
    EXPECT_TRUE(at::equal(thin(others, weight, {none, none, 0, false})[0], all[most - 1]));
  }
}

TEST_F(ThinGemmGpu, ServesFewAlignedRows) {
  const Tensor weight = few({24, 64}), none;
  const auto serves = [&](const Tensor& x) {
    return cuda::thin_projection_serves(x, weight, none);
  };
  EXPECT_TRUE(serves(few({32, 64})));
  EXPECT_FALSE(serves(few({33, 64})));
  EXPECT_FALSE(serves(few({0, 64})));
  EXPECT_FALSE(serves(few({64, 8}).t()));
  EXPECT_FALSE(serves(random({8, 64}, at::kFloat)));
  EXPECT_FALSE(serves(few({8 * 64 + 1}).narrow(0, 1, 8 * 64).view({8, 64})));
  EXPECT_FALSE(cuda::thin_projection_serves(few({8, 63}), few({24, 63}), none));
  EXPECT_FALSE(cuda::thin_projection_serves(few({9, 8192}), few({24, 8192}), none));
  EXPECT_FALSE(cuda::thin_projection_serves(few({8, 64}), weight.to(at::kFloat), none));
  EXPECT_FALSE(cuda::thin_projection_serves(few({8, 64}), few({64, 24}).t(), none));
  EXPECT_FALSE(cuda::thin_projection_serves(few({8, 64}), weight, few({65}).narrow(0, 1, 64)));
}

/// Logits of an odd vocabulary take another way through cuBLASLt.
TEST_F(ThinGemmGpu, WideProductOfOddWidthIsAsAccurateAsLibTorchs) {
  const at::NoGradGuard no_grad;
  const Tensor x = few({2, 32, 768}), weight = weight_of(50257, 768);
  const Tensor logits = ops::linear(x, weight);
  EXPECT_TRUE(logits.is_contiguous());
  expect_as_exact(logits, at::matmul(x, weight.t()), at::matmul(wide(x), wide(weight).t()), "head");
}

/// Residual stream after two blocks of a model without attention, C = 256, and its logits.
struct Model {
  static constexpr int64_t kChannels = 256, kHidden = 520, kVocab = 1001;
  std::vector<Tensor> qkv, proj, up, down;
  Tensor norm = few({kChannels}), head = weight_of(kVocab, kChannels);

  Model() {
    for (int layer = 0; layer < 2; ++layer) {
      qkv.push_back(weight_of(kChannels, kChannels));
      proj.push_back(weight_of(kChannels, kChannels));
      up.push_back(weight_of(2 * kHidden, kChannels));
      down.push_back(weight_of(kChannels, kHidden));
    }
  }
  Tensor logits(Tensor x) const {
    for (size_t layer = 0; layer < qkv.size(); ++layer) {
      const Tensor inner = norm_linear(x, norm, kEps, qkv[layer]);
      x = linear_add(inner, proj[layer], x);
      x = norm_swiglu_feed_forward(x, norm, kEps, up[layer], down[layer]);
    }
    return norm_linear(x, norm, kEps, head);
  }
  Tensor logits_of_separate_ops(Tensor x) const {
    for (size_t layer = 0; layer < qkv.size(); ++layer) {
      const Tensor inner = ops::linear(rms_norm(x, norm, kEps), qkv[layer]);
      x = linear_add(inner, proj[layer], x);
      x = swiglu_feed_forward(rms_norm(x, norm, kEps), up[layer], down[layer], x);
    }
    return ops::linear(rms_norm(x, norm, kEps), head);
  }
};

TEST_F(ThinGemmGpu, OverlappedKernelsHaveTheSameBits) {
  const at::NoGradGuard no_grad;
  const Model model;
  for (const int64_t rows : {1, 8, 13, 32, 64}) {
    SCOPED_TRACE(rows);
    const Tensor x = few({rows, Model::kChannels});
    const Tensor expected = model.logits_of_separate_ops(x);
    EXPECT_TRUE(at::equal(model.logits(x), expected));
    {
      const OverlappedLaunches overlapped;
      for (int i = 0; i < 20; ++i) EXPECT_TRUE(at::equal(model.logits(x), expected)) << i;
    }
    Graph graph(at::Device(at::kCUDA, 0));
    const Graph::OnItsStream on(graph);
    Tensor recorded;
    graph.record([&] {
      const OverlappedLaunches overlapped;
      recorded = model.logits(x.clone());  // the first kernel follows a copy
    });
    for (int i = 0; i < 20; ++i) {
      recorded.fill_(kNan);
      graph.replay();
      EXPECT_TRUE(at::equal(recorded, expected)) << "replay " << i;
    }
  }
}

TEST_F(ThinGemmGpu, GradientsAreThoseOfTheOrdinaryOps) {
  const Tensor x = few({4, 64}).requires_grad_(), weight = few({24, 64}, 0.1).requires_grad_();
  const Tensor norm = few({64});
  const Tensor out = norm_linear(x, norm, kEps, weight);
  ASSERT_TRUE(out.requires_grad());
  const auto grads = torch::autograd::grad({out.sum()}, {x, weight});
  const Tensor other = ops::linear(rms_norm(x, norm, kEps), weight);
  const auto expected = torch::autograd::grad({other.sum()}, {x, weight});
  for (size_t i = 0; i < grads.size(); ++i) EXPECT_TRUE(at::equal(grads[i], expected[i])) << i;
}

/// Widths that no kernel for few rows serves run the ordinary ones.
TEST_F(ThinGemmGpu, OpsOfAnyWidthMatchSeparateOps) {
  const at::NoGradGuard no_grad;
  for (const auto& [channels, hidden] : {std::array<int64_t, 2>{63, 44}, {64, 43}, {9, 3}}) {
    for (const int64_t rows : {1, 5, 64, 65}) {
      SCOPED_TRACE(describe("rows, C, F", {rows, channels, hidden}, at::kBFloat16));
      const Tensor x = few({rows, channels}), norm = few({channels});
      const Tensor up = weight_of(2 * hidden, channels), down = weight_of(channels, hidden);
      const Tensor normed = reference::rms_norm(wide(x), wide(norm), kEps);
      const Tensor gated = reference::swiglu(at::mm(normed, wide(up).t()));
      const Tensor truth = wide(x) + at::mm(gated, wide(down).t());
      EXPECT_LE(error(norm_swiglu_feed_forward(x, norm, kEps, up, down), truth), 2e-2);
    }
  }
}

}  // namespace
}  // namespace stablemask::ops
