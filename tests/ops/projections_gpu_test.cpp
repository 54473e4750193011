#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "src/ops/cuda/fused_gemm.h"
#include "src/ops/cuda/projections.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/gpu_errors.h"

/// GEMMs with a fused epilogue against separate ops in fp64; separate ops in bf16 set the
/// tolerance.
namespace stablemask::ops {
namespace {

using namespace testing_gpu;
using at::Tensor;

class FusedProjectionGpu : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    if (!cuda::fused_gemm_runs_here()) GTEST_SKIP() << "no GPU of compute capability 9.0";
  }
};

Tensor bf16(at::IntArrayRef shape, double scale = 1.0) {
  return random(shape, at::kBFloat16, scale);
}

Tensor unwritten(at::IntArrayRef shape) { return poisoned(shape, at::kBFloat16); }

/// {rows, inner, features}: minimal sizes, tile boundaries, several waves of the whole GPU.
const std::vector<std::array<int64_t, 3>> kShapes = {
    {1, 8, 8},       {127, 64, 136},  {129, 72, 128}, {256, 520, 424},   {1000, 200, 264},
    {515, 768, 904}, {3, 1032, 2056}, {5000, 64, 24}, {4099, 512, 1544}, {8192, 256, 1536}};

TEST_F(FusedProjectionGpu, SwigluIsAsAccurateAsSeparateOps) {
  for (const auto& [rows, inner, features] : kShapes) {
    const std::string what = describe("swiglu", {rows, inner, features}, at::kBFloat16);
    const double scale = 2.0 / std::sqrt(static_cast<double>(inner));
    const Tensor x = bf16({rows, inner}), weight = bf16({2 * features, inner}, scale);
    Tensor gate_up = unwritten({rows, 2 * features}), out = unwritten({rows, features});
    cuda::swiglu_projection(x, weight, gate_up, out);
    const Tensor eager = at::mm(x, weight.t()), truth = at::mm(wide(x), wide(weight).t());
    expect_as_exact(gate_up, eager, truth, what + " gate and up");
    expect_as_exact(out, reference::swiglu(eager), reference::swiglu(truth), what);
    Tensor again = unwritten(gate_up.sizes()), out_again = unwritten(out.sizes());
    cuda::swiglu_projection(x, weight, again, out_again);
    EXPECT_TRUE(at::equal(again, gate_up) && at::equal(out_again, out)) << what << " again";
  }
}

Tensor swiglu_gradient(const Tensor& dout, const Tensor& gate_up) {
  const Tensor in = gate_up.detach().clone().requires_grad_();
  reference::swiglu(in).backward(dout);
  return in.grad();
}

TEST_F(FusedProjectionGpu, SwigluGradientIsAsAccurateAsSeparateOps) {
  for (const auto& [rows, inner, features] : kShapes) {
    const std::string what = describe("swiglu gradient", {rows, inner, features}, at::kBFloat16);
    const Tensor dy = bf16({rows, inner});
    const Tensor weight = bf16({inner, features}, 1.0 / std::sqrt(static_cast<double>(inner)));
    const Tensor gate_up = bf16({rows, 2 * features}, 2.0);
    Tensor dgate_up = unwritten(gate_up.sizes());
    cuda::swiglu_projection_backward(dy, weight, gate_up, dgate_up);
    const Tensor eager = swiglu_gradient(at::mm(dy, weight), gate_up);
    const Tensor truth = swiglu_gradient(at::mm(wide(dy), wide(weight)), wide(gate_up));
    expect_as_exact(dgate_up, eager, truth, what);
    Tensor again = unwritten(gate_up.sizes());
    cuda::swiglu_projection_backward(dy, weight, gate_up, again);
    EXPECT_TRUE(at::equal(again, dgate_up)) << what << " again";
  }
}

TEST_F(FusedProjectionGpu, SwigluGradientOfExtremeGatesIsFinite) {
  Tensor gate_up = bf16({300, 512});
  gate_up.narrow(1, 0, 256).select(0, 7).fill_(300.0);
  gate_up.narrow(1, 0, 256).select(0, 8).fill_(-300.0);
  const Tensor dy = bf16({300, 64}), weight = bf16({64, 256}, 0.1);
  Tensor dgate_up = unwritten(gate_up.sizes());
  cuda::swiglu_projection_backward(dy, weight, gate_up, dgate_up);
  EXPECT_TRUE(dgate_up.isfinite().all().item<bool>());
  EXPECT_EQ(dgate_up.select(0, 8).abs().max().item<float>(), 0.0f);
}

struct RopeShape {
  int64_t batch, length, inner, heads, packed_heads, dim;
  bool per_row;
};

TEST_F(FusedProjectionGpu, RopeIsAsAccurateAsSeparateOps) {
  const std::vector<RopeShape> shapes = {
      {1, 1, 8, 1, 1, 64, false},       {2, 127, 200, 2, 3, 64, false},
      {3, 50, 64, 5, 7, 128, true},     {2, 300, 520, 2, 6, 256, false},
      {1, 257, 768, 24, 36, 64, true},  {2, 1031, 512, 4, 12, 128, false},
      {4, 2048, 256, 16, 24, 64, false}};
  for (const RopeShape& s : shapes) {
    const std::string what = describe(
        "rope", {s.batch, s.length, s.inner, s.heads, s.packed_heads, s.dim}, at::kBFloat16);
    const Tensor x = bf16({s.batch * s.length, s.inner});
    const Tensor weight =
        bf16({s.packed_heads * s.dim, s.inner}, 1.0 / std::sqrt(static_cast<double>(s.inner)));
    const Tensor table = rope_table(4096, s.dim, 1e4).cuda();
    const Tensor positions = s.per_row ? at::randint(4096, {s.batch, s.length}, gpu(at::kLong))
                                       : at::arange(7, 7 + s.length, gpu(at::kLong));
    Tensor packed = unwritten({s.batch, s.length, s.packed_heads, s.dim});
    cuda::rope_projection(x, weight, s.heads, positions, table, packed);
    const auto rotated = [&](const Tensor& product) {
      return reference::rope(product.view(packed.sizes()), s.heads, s.dim, positions, table);
    };
    const Tensor truth = rotated(at::mm(wide(x), wide(weight).t()));
    expect_as_exact(packed, rotated(at::mm(x, weight.t())), truth, what);
  }
}

TEST_F(FusedProjectionGpu, RopeOfAPositionOutsideTheTableIsNan) {
  const Tensor x = bf16({4, 64}), weight = bf16({192, 64});
  const Tensor positions = at::tensor({0, 5, -1, 3}, at::kLong).cuda();
  Tensor packed = unwritten({1, 4, 3, 64});
  cuda::rope_projection(x, weight, 2, positions, rope_table(4, 64, 1e4).cuda(), packed);
  for (const int64_t row : {0, 1, 2, 3}) {
    const bool known = row == 0 || row == 3;
    const Tensor turned = packed.select(1, row).narrow(1, 0, 2);
    EXPECT_EQ(turned.isfinite().all().item<bool>(), known) << row;
    EXPECT_EQ(turned.isnan().all().item<bool>(), !known) << row;
    EXPECT_TRUE(packed.select(1, row).narrow(1, 2, 1).isfinite().all().item<bool>()) << row;
  }
}

/// [rows, columns], in memory whose rows end in NaN and are multiples of 16 bytes.
Tensor strided(int64_t rows, int64_t columns, double scale = 1.0) {
  const Tensor all = unwritten({rows, (columns + 15) / 8 * 8}).narrow(1, 0, columns);
  all.copy_(bf16({rows, columns}, scale));
  return all;
}

/// A shape of kShapes and second factors of it, x2 [rows, depth].
struct SecondCase {
  int64_t rows, inner, columns, depth;
  Tensor x, weight, x2, weight2;

  /// `plain`: weights are [inner, columns] instead of [columns, inner].
  SecondCase(const std::array<int64_t, 3>& shape, int64_t depth_in, int64_t factor, bool plain)
      : rows(shape[0]), inner(shape[1]), columns(factor * shape[2]), depth(depth_in) {
    const double scale = 2.0 / std::sqrt(static_cast<double>(inner));
    x = bf16({rows, inner});
    x2 = strided(rows, depth);
    weight = plain ? bf16({inner, columns}, scale) : bf16({columns, inner}, scale);
    weight2 = plain ? strided(depth, columns) : strided(columns, depth);
    plain_ = plain;
  }
  SecondFactors second() const { return {x2, weight2}; }
  /// The sum of both products with fp32 sums, or in fp64.
  Tensor eager() const { return at::mm(x, turned(weight)) + at::mm(x2, turned(weight2)); }
  Tensor truth() const {
    return at::mm(wide(x), turned(wide(weight))) + at::mm(wide(x2), turned(wide(weight2)));
  }
  std::string text(const char* what) const {
    return describe(what, {rows, inner, columns, depth}, at::kBFloat16);
  }

 private:
  Tensor turned(const Tensor& matrix) const { return plain_ ? matrix : matrix.t(); }
  bool plain_ = false;
};

const std::vector<int64_t> kDepths = {5, 16, 48, 136};

TEST_F(FusedProjectionGpu, SecondFactorsAreAddedBeforeSwiglu) {
  for (const auto& shape : kShapes) {
    for (const int64_t depth : kDepths) {
      const SecondCase c(shape, depth, 2, /*plain=*/false);
      Tensor gate_up = unwritten({c.rows, c.columns}), out = unwritten({c.rows, c.columns / 2});
      cuda::swiglu_projection(c.x, c.weight, gate_up, out, c.second());
      const Tensor eager = c.eager(), truth = c.truth();
      expect_as_exact(gate_up, eager, truth, c.text("gate and up"));
      expect_as_exact(out, reference::swiglu(eager), reference::swiglu(truth), c.text("swiglu"));
    }
  }
}

TEST_F(FusedProjectionGpu, SecondFactorsAreAddedBeforeSwiglusGradient) {
  for (const auto& shape : kShapes) {
    for (const int64_t depth : kDepths) {
      const SecondCase c(shape, depth, 1, /*plain=*/true);
      const Tensor gate_up = bf16({c.rows, 2 * c.columns}, 2.0);
      Tensor dgate_up = unwritten(gate_up.sizes()), out = unwritten({c.rows, c.columns});
      cuda::swiglu_projection_backward(c.x, c.weight, gate_up, dgate_up, c.second(), out);
      expect_as_exact(dgate_up, swiglu_gradient(c.eager(), gate_up),
                      swiglu_gradient(c.truth(), wide(gate_up)), c.text("swiglu gradient"));
      EXPECT_TRUE(at::equal(out, ops::swiglu(gate_up))) << c.text("its output");
      Tensor alone = unwritten(gate_up.sizes());
      cuda::swiglu_projection_backward(c.x, c.weight, gate_up, alone, c.second());
      EXPECT_TRUE(at::equal(alone, dgate_up)) << c.text("without its output");
    }
  }
}

TEST_F(FusedProjectionGpu, SecondFactorsAreAddedBeforeRope) {
  constexpr int64_t kDim = 64;
  const Tensor table = rope_table(8192, kDim, 1e4).cuda();
  for (const auto& [rows, inner, heads] : std::vector<std::array<int64_t, 3>>{
           {1, 8, 1}, {254, 200, 3}, {514, 768, 36}, {4099, 64, 7}}) {
    for (const int64_t depth : kDepths) {
      const SecondCase c({rows, inner, heads * kDim}, depth, 1, /*plain=*/false);
      const Tensor positions = at::arange(rows, gpu(at::kLong));
      Tensor packed = unwritten({1, rows, heads, kDim});
      cuda::rope_projection(c.x, c.weight, heads, positions, table, packed, c.second());
      const auto rotated = [&](const Tensor& product) {
        return reference::rope(product.view(packed.sizes()), heads, kDim, positions, table);
      };
      expect_as_exact(packed, rotated(c.eager()), rotated(c.truth()), c.text("rope"));
    }
  }
}

TEST_F(FusedProjectionGpu, SumsOfTwoProductsAreAsAccurateAsSeparateOps) {
  for (const auto& shape : kShapes) {
    for (const int64_t depth : kDepths) {
      for (const bool plain : {false, true}) {
        const SecondCase c(shape, depth, 1, plain);
        const Tensor residual = bf16({c.rows, c.columns});
        const Tensor eager = c.eager(), truth = c.truth();
        Tensor out = unwritten({c.rows, c.columns});
        cuda::sum_projection(c.x, c.weight, c.second(), {}, plain, out);
        expect_as_exact(out, eager, truth, c.text("sum"));
        if (plain) continue;
        Tensor sum = unwritten(out.sizes());
        cuda::sum_projection(c.x, c.weight, c.second(), residual, plain, sum);
        expect_as_exact(sum, residual + eager, wide(residual) + truth, c.text("with addend"));
      }
    }
  }
}

TEST_F(FusedProjectionGpu, SecondFactorsThatDoNotFitAreRefused) {
  const SecondCase c({256, 64, 128}, 16, 1, /*plain=*/false);
  EXPECT_TRUE(cuda::second_factors_serve({}));
  EXPECT_TRUE(cuda::second_factors_serve(c.second()));
  EXPECT_FALSE(cuda::second_factors_serve({c.x2, {}}));
  EXPECT_FALSE(cuda::second_factors_serve({c.x2, bf16({128, 12})}));  // rows of 24 bytes
  EXPECT_FALSE(cuda::second_factors_serve({c.x2.to(at::kFloat), c.weight2}));
  Tensor out = unwritten({256, 128});
  EXPECT_THROW(cuda::sum_projection(c.x, c.weight, {c.x2, bf16({120, 16})}, {}, false, out),
               c10::Error);
}

TEST_F(FusedProjectionGpu, ServesAlignedShapesOfEnoughTiles) {
  EXPECT_TRUE(cuda::fused_projection_serves(bf16({8192, 512}), 1024, 1024));
  EXPECT_FALSE(cuda::fused_projection_serves(bf16({8192, 512}), 1023, 1023));
  EXPECT_FALSE(cuda::fused_projection_serves(bf16({8192, 512}), 3080, 1540));  // SwiGLU, F = 1540
  EXPECT_FALSE(cuda::fused_projection_serves(bf16({8192, 511}), 1024, 1024));
  EXPECT_FALSE(cuda::fused_projection_serves(bf16({256, 512}), 1024, 1024));  // too few tiles
  EXPECT_FALSE(cuda::fused_projection_serves(bf16({512, 8192}).t(), 1024, 1024));
  EXPECT_FALSE(cuda::fused_projection_serves(random({8192, 512}, at::kFloat), 1024, 1024));
  EXPECT_FALSE(cuda::fused_projection_serves(
      bf16({8192 * 512 + 1}).narrow(0, 1, 8192 * 512).view({8192, 512}), 1024, 1024));
}

/// Values and gradients of f's output against a random direction.
template <typename F>
std::vector<Tensor> evaluated(const std::vector<Tensor>& inputs, const F& f) {
  std::vector<Tensor> leaves;
  for (const Tensor& x : inputs) leaves.push_back(x.detach().clone().requires_grad_());
  const Tensor out = f(leaves);
  out.backward(out.dim() == 0 ? at::ones_like(out)
                              : at::ones_like(out).cumsum(-1).remainder(3.0).sub(1.0));
  std::vector<Tensor> results = {out.detach()};
  for (const Tensor& x : leaves) results.push_back(x.grad());
  return results;
}

/// Expects value and gradients of `fused` to be as accurate as those of `steps`, against `truth` in
/// fp64.
template <typename Fused, typename Steps, typename Truth>
void expect_all_as_exact(const std::vector<Tensor>& inputs, const Fused& fused, const Steps& steps,
                         const Truth& truth) {
  std::vector<Tensor> exact;
  for (const Tensor& x : inputs) exact.push_back(wide(x));
  const auto got = evaluated(inputs, fused), eager = evaluated(inputs, steps);
  const auto want = evaluated(exact, truth);
  for (size_t i = 0; i < got.size(); ++i) {
    expect_as_exact(got[i], eager[i], want[i], "result " + std::to_string(i));
  }
}

TEST_F(FusedProjectionGpu, FeedForwardMatchesSeparateOps) {
  const std::vector<Tensor> inputs = {bf16({8, 1024, 512}), bf16({2048, 512}, 0.05),
                                      bf16({512, 1024}, 0.05), bf16({8, 1024, 512})};
  const auto fused = [](const auto& x) { return swiglu_feed_forward(x[0], x[1], x[2], x[3]); };
  const auto steps = [](const auto& x) {
    return x[3] + ops::linear(ops::swiglu(ops::linear(x[0], x[1])), x[2]);
  };
  const auto truth = [](const auto& x) {
    return x[3] + at::matmul(reference::swiglu(at::matmul(x[0], x[1].t())), x[2].t());
  };
  ASSERT_TRUE(cuda::fused_projection_serves(inputs[0].view({-1, 512}), 1024, 1024));
  expect_all_as_exact(inputs, fused, steps, truth);
}

TEST_F(FusedProjectionGpu, RopeLinearMatchesSeparateOps) {
  const int64_t length = 1024, heads = 18, dim = 64;
  const std::vector<Tensor> inputs = {bf16({8, length, 512}), bf16({heads * dim, 512}, 0.05)};
  const RopeInputs rope{dim, at::arange(length, gpu(at::kLong)),
                        rope_table(length, dim, 1e4).cuda()};
  const auto fused = [&](const auto& x) { return rope_linear(x[0], x[1], heads, 8, rope); };
  const auto steps = [&](const auto& x) {
    return ops::rope(ops::linear(x[0], x[1]).view({8, length, heads, dim}), 8, dim, rope.positions,
                     rope.table);
  };
  const auto truth = [&](const auto& x) {
    const Tensor packed = at::matmul(x[0], x[1].t()).view({8, length, heads, dim});
    return reference::rope(packed, 8, dim, rope.positions, rope.table);
  };
  ASSERT_TRUE(cuda::fused_projection_serves(inputs[0].view({-1, 512}), heads * dim, heads * dim));
  expect_all_as_exact(inputs, fused, steps, truth);
}

/// 8192 tokens: enough tiles for the fused kernels if the widths allow them. Widths that are not
/// multiples of 8 break the alignment that TMA and vector loads need.
constexpr int64_t kTokens = 8192;

TEST_F(FusedProjectionGpu, FeedForwardOfAnyWidthMatchesSeparateOps) {
  struct Widths {
    int64_t channels, hidden;
  };
  for (const auto& [channels, hidden] : {Widths{512, 1540},
                                         {512, 1537},
                                         {512, 1542},
                                         {508, 1536},
                                         {511, 1000},
                                         {520, 1528},
                                         {72, 4},
                                         {1, 3}}) {
    SCOPED_TRACE("C " + std::to_string(channels) + ", F " + std::to_string(hidden));
    const std::vector<Tensor> inputs = {bf16({kTokens, channels}),
                                        bf16({2 * hidden, channels}, 0.05),
                                        bf16({channels, hidden}, 0.05), bf16({kTokens, channels})};
    const auto fused = [](const auto& x) { return swiglu_feed_forward(x[0], x[1], x[2], x[3]); };
    const auto steps = [](const auto& x) {
      return x[3] + ops::linear(ops::swiglu(ops::linear(x[0], x[1])), x[2]);
    };
    const auto truth = [](const auto& x) {
      return x[3] + at::matmul(reference::swiglu(at::matmul(x[0], x[1].t())), x[2].t());
    };
    expect_all_as_exact(inputs, fused, steps, truth);
  }
}

TEST_F(FusedProjectionGpu, RopeLinearOfAnyHeadDimMatchesSeparateOps) {
  struct Heads {
    int64_t channels, packed, dim, dims;
  };
  for (const auto& h : {Heads{512, 18, 64, 32},
                        {512, 9, 36, 36},
                        {508, 12, 64, 64},
                        {512, 7, 20, 10},
                        {100, 3, 2, 2},
                        {512, 6, 96, 96},
                        {512, 3, 130, 128}}) {
    SCOPED_TRACE("D " + std::to_string(h.dim) + ", rotated " + std::to_string(h.dims));
    const int64_t length = 1024, batch = kTokens / length;
    const std::vector<Tensor> inputs = {bf16({batch, length, h.channels}),
                                        bf16({h.packed * h.dim, h.channels}, 0.05)};
    const RopeInputs rope{h.dims, at::arange(length, gpu(at::kLong)),
                          rope_table(length, h.dims, 1e4).cuda()};
    const auto fused = [&](const auto& x) { return rope_linear(x[0], x[1], h.packed, 2, rope); };
    const auto steps = [&](const auto& x) {
      return ops::rope(ops::linear(x[0], x[1]).view({batch, length, h.packed, h.dim}), 2, h.dims,
                       rope.positions, rope.table);
    };
    const auto truth = [&](const auto& x) {
      const Tensor packed = at::matmul(x[0], x[1].t()).view({batch, length, h.packed, h.dim});
      return reference::rope(packed, 2, h.dims, rope.positions, rope.table);
    };
    expect_all_as_exact(inputs, fused, steps, truth);
  }
}

TEST_F(FusedProjectionGpu, HeadOfAnyVocabularyMatchesSeparateOps) {
  for (const int64_t vocab : {1001, 1004, 4097, 9, 3}) {
    for (const int64_t channels : {128, 100, 33}) {
      SCOPED_TRACE("V " + std::to_string(vocab) + ", C " + std::to_string(channels));
      const Tensor targets = at::randint(vocab, {kTokens}, gpu(at::kLong));
      const std::vector<Tensor> inputs = {bf16({kTokens, channels}), bf16({vocab, channels}, 0.05)};
      const auto fused = [&](const auto& x) {
        return linear_cross_entropy(x[0], x[1], targets, 1.0 / kTokens);
      };
      const auto steps = [&](const auto& x) {
        return reference::cross_entropy(ops::linear(x[0], x[1]), targets).mean();
      };
      const auto truth = [&](const auto& x) {
        return reference::cross_entropy(at::mm(x[0], x[1].t()), targets).mean();
      };
      expect_all_as_exact(inputs, fused, steps, truth);
    }
  }
}

TEST_F(FusedProjectionGpu, FrozenHeadGivesTheSameGradientInShorterChunks) {
  const int64_t vocab = 16384, channels = 64;
  ASSERT_LT(logit_chunk_rows(true, vocab, 2, /*frozen_head=*/true), kTokens + 1);
  ASSERT_GT(logit_chunk_rows(true, vocab, 2), kTokens);
  const Tensor targets = at::randint(vocab, {2 * kTokens}, gpu(at::kLong));
  const Tensor x = bf16({2 * kTokens, channels}), weight = bf16({vocab, channels}, 0.05);
  std::vector<Tensor> grads;
  for (const bool frozen : {false, true}) {
    const Tensor in = x.detach().clone().requires_grad_();
    const Tensor head = weight.detach().clone().requires_grad_(!frozen);
    linear_cross_entropy(in, head, targets, 1.0).backward();
    grads.push_back(in.grad());
  }
  EXPECT_LE(error(grads[1], grads[0]), 1e-2);
}

TEST_F(FusedProjectionGpu, LinearAddOfAnyWidthMatchesSeparateOps) {
  for (const int64_t columns : {512, 510, 509, 4, 1}) {
    SCOPED_TRACE("columns " + std::to_string(columns));
    const std::vector<Tensor> inputs = {bf16({kTokens, 260}), bf16({columns, 260}, 0.05),
                                        bf16({kTokens, columns})};
    const auto fused = [](const auto& x) { return linear_add(x[0], x[1], x[2]); };
    const auto steps = [](const auto& x) { return x[2] + ops::linear(x[0], x[1]); };
    const auto truth = [](const auto& x) { return x[2] + at::mm(x[0], x[1].t()); };
    expect_all_as_exact(inputs, fused, steps, truth);
  }
}

}  // namespace
}  // namespace stablemask::ops
