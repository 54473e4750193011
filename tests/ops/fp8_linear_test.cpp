#include "stablemask/ops/fp8_linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "stablemask/ops/reference.h"
#include "tests/ops/checks.h"

namespace stablemask::ops {
namespace {

using fp8::Format;
using testing::normal;
using testing::relative_error;

constexpr int64_t kRows = 32, kIn = 48, kOut = 64;

/// A weight with a gradient buffer and fp8 state that scales just in time.
struct TestedWeight {
  TestedWeight(at::IntArrayRef sizes, uint64_t seed, Format gradients = Format::kE5M2)
      : scaling(fp8::make_scaling({Format::kE4M3, Format::kE4M3, gradients}, 2, 1.0, at::kCPU)),
        fp8(c10::make_intrusive<fp8::Projection>()) {
    const at::Tensor values = normal(sizes, seed, at::kFloat).mul_(0.1).requires_grad_();
    values.mutable_grad() = at::zeros(sizes);
    weight = Weight::tracked(values);
    fp8->input = scaling.slot(0);
    fp8->weight = scaling.slot(1);
    fp8->gradient = scaling.slot(2);
    fp8->copy = fp8::make_matrix(sizes[0], sizes[1], fp8->weight, fp8::Parts::kBoth);
    fp8->just_in_time = true;
  }
  fp8::Fp8Weight argument() const { return {weight, fp8}; }
  at::Tensor grad() const { return weight.tensor().grad(); }

  fp8::Scaling scaling;
  Weight weight;
  fp8::ProjectionPtr fp8;
};

/// x as fp8 holds it, in fp64: scaled by the power of two that brings max |x| to at most the
/// largest number of the format, rounded, scaled back.
at::Tensor rounded(const at::Tensor& x, Format format = Format::kE4M3) {
  const at::Tensor wide = x.detach().to(at::kDouble);
  const double largest = format == Format::kE4M3 ? 448 : 57344;
  const double scale = std::exp2(std::floor(std::log2(largest / wide.abs().max().item<double>())));
  const auto type = format == Format::kE4M3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2;
  return (wide * scale).to(at::kFloat).to(type).to(at::kDouble) / scale;
}

at::Tensor gradient_like(const at::Tensor& y, uint64_t seed) {
  return normal(y.sizes(), seed, at::kFloat).mul_(1e-6);
}

TEST(Fp8Linear, ThreeProductsEqualTheLiteralOnes) {
  for (const Format format : {Format::kE5M2, Format::kE4M3}) {
    const TestedWeight w({kOut, kIn}, 1, format);
    const at::Tensor x = normal({2, kRows / 2, kIn}, 2, at::kFloat).requires_grad_();
    const at::Tensor residual = normal({2, kRows / 2, kOut}, 3, at::kFloat).requires_grad_();
    const at::Tensor y = fp8::linear(x, w.argument(), residual);
    const at::Tensor dy = gradient_like(y, 4);
    y.backward(dy);

    const at::Tensor in = rounded(x).view({kRows, kIn}), weight = rounded(w.weight.tensor());
    const at::Tensor dout = rounded(dy, format).view({kRows, kOut});
    EXPECT_LT(relative_error(y, residual + at::mm(in, weight.t()).view(y.sizes())), 1e-6);
    // Gradients are tiny; relative_error takes numbers about 1.
    EXPECT_LT(relative_error(x.grad() * 1e6, at::mm(dout, weight).view(x.sizes()) * 1e6), 1e-6);
    EXPECT_LT(relative_error(w.grad() * 1e6, at::mm(dout.t(), in) * 1e6), 1e-6);
    EXPECT_TRUE(residual.grad().equal(dy));

    // And these are the exact products up to the rounding of fp8.
    const at::Tensor exact = residual + at::matmul(x, w.weight.tensor().t());
    EXPECT_LT(relative_error(y, exact), 0.03);
    EXPECT_GT(relative_error(y, exact), 1e-3);
    const at::Tensor exact_dw = at::mm(dy.view({kRows, kOut}).t(), x.view({kRows, kIn}));
    EXPECT_LT(relative_error(w.grad() * 1e6, exact_dw * 1e6), 0.1);
  }
}

TEST(Fp8Linear, AccumulatesAndOverwritesStaleGradients) {
  const TestedWeight w({kOut, kIn}, 1);
  const at::Tensor x = normal({kRows, kIn}, 2, at::kFloat);
  const auto pass = [&] {
    const at::Tensor y = fp8::linear(x, w.argument());
    y.backward(gradient_like(y, 4));
  };
  pass();
  const at::Tensor once = w.grad().clone();
  EXPECT_GT(once.abs().max().item<double>(), 0);
  pass();
  EXPECT_LT(relative_error(w.grad() * 1e6, once * 2e6), 1e-6);
  w.grad().fill_(NAN);
  w.weight.begin_gradient();
  pass();
  w.weight.finish_gradient();
  EXPECT_TRUE(w.grad().equal(once));

  // Without a buffer the gradient goes to autograd.
  w.weight.tensor().mutable_grad().reset();
  pass();
  EXPECT_TRUE(w.grad().equal(once));
}

TEST(Fp8Linear, CopiesTheWeightOnceUntilItIsTold) {
  const TestedWeight w({kOut, kIn}, 1);
  const at::Tensor x = normal({kRows, kIn}, 2, at::kFloat);
  const at::NoGradGuard no_grad;
  const at::Tensor first = fp8::linear(x, w.argument());
  at::Tensor(w.weight.tensor()).zero_();
  EXPECT_TRUE(fp8::linear(x, w.argument()).equal(first));
  w.fp8->copied = false;
  EXPECT_EQ(fp8::linear(x, w.argument()).abs().max().item<double>(), 0);
}

/// With a history nothing is scaled by its own maximum.
TEST(Fp8Linear, DelayedScalesComeFromTheHistory) {
  TestedWeight w({kOut, kIn}, 1);
  const at::NoGradGuard no_grad;
  const at::Tensor x = normal({kRows, kIn}, 2, at::kFloat);
  fp8::linear(x, w.argument());
  fp8::update_scales_(w.scaling);
  const double before = w.fp8->input.scale.item<double>();
  w.fp8->just_in_time = false;
  const at::Tensor y = fp8::linear(x * 64, w.argument());
  EXPECT_EQ(w.fp8->input.scale.item<double>(), before);
  EXPECT_TRUE(y.isfinite().all().item<bool>()) << "clipped";
  EXPECT_LT(y.norm().item<double>(), 32 * fp8::linear(x, w.argument()).norm().item<double>());
  fp8::update_scales_(w.scaling);
  EXPECT_EQ(w.fp8->input.scale.item<double>(), before / 64);
  EXPECT_EQ(w.scaling.saturations[0].item<int64_t>(), 1);
}

TEST(Fp8Linear, WhatIsNotFiniteStaysVisible) {
  const TestedWeight w({kOut, kIn}, 1);
  const at::NoGradGuard no_grad;
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    at::Tensor x = normal({kRows, kIn}, 2, at::kFloat);
    x[3][5] = bad;
    const at::Tensor y = fp8::linear(x, w.argument());
    EXPECT_TRUE(y[3].isnan().all().item<bool>()) << bad;
  }
}

TEST(Fp8Linear, RopeFollowsTheProduct) {
  constexpr int64_t kTime = 16, kHeads = 4, kRotated = 3, kDim = 16;
  const RopeInputs rope{kDim, at::arange(kTime), rope_table(kTime, kDim, 10000.0)};
  const auto run = [&](const auto& f) {
    const TestedWeight w({kHeads * kDim, kIn}, 1);
    const at::Tensor x = normal({2, kTime, kIn}, 2, at::kFloat).requires_grad_();
    const at::Tensor y = f(x, w.argument());
    y.backward(gradient_like(y, 3));
    return std::array{y.detach(), x.grad(), w.grad()};
  };
  const auto fused = run([&](const at::Tensor& x, const fp8::Fp8Weight& w) {
    return fp8::rope_linear(x, w, kHeads, kRotated, rope);
  });
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    const auto apart = run([&](const at::Tensor& x, const fp8::Fp8Weight& w) {
      const at::Tensor packed = fp8::linear(x, w, {}, kernels).view({2, kTime, kHeads, kDim});
      return ops::rope(packed, kRotated, kDim, rope.positions, rope.table, kernels);
    });
    EXPECT_LT(relative_error(fused[0], apart[0]), 1e-6);
    // A difference in the last bit of a gradient can become one of fp8.
    EXPECT_LT(relative_error(fused[1] * 1e6, apart[1] * 1e6), 0.01);
    EXPECT_LT(relative_error(fused[2] * 1e6, apart[2] * 1e6), 0.01);
  }
}

TEST(Fp8Linear, FeedForwardIsItsTwoProjections) {
  constexpr int64_t kHidden = 80;
  const auto run = [&](const auto& f) {
    const TestedWeight up({2 * kHidden, kIn}, 1), down({kIn, kHidden}, 2);
    const at::Tensor x = normal({2, kRows / 2, kIn}, 3, at::kFloat).requires_grad_();
    const at::Tensor residual = normal(x.sizes(), 4, at::kFloat).requires_grad_();
    const at::Tensor y = f(x, up.argument(), down.argument(), residual);
    y.backward(gradient_like(y, 5));
    return std::array{y.detach(), x.grad(), residual.grad(), up.grad(), down.grad()};
  };
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    const auto whole = run([&](const at::Tensor& x, const fp8::Fp8Weight& up,
                               const fp8::Fp8Weight& down, const at::Tensor& residual) {
      return fp8::swiglu_feed_forward(x, up, down, residual, kernels);
    });
    const auto parts = run([&](const at::Tensor& x, const fp8::Fp8Weight& up,
                               const fp8::Fp8Weight& down, const at::Tensor& residual) {
      const at::Tensor hidden = ops::swiglu(fp8::linear(x, up, {}, kernels), kernels);
      return fp8::linear(hidden, down, residual, kernels);
    });
    EXPECT_TRUE(whole[0].equal(parts[0]));
    for (size_t i = 1; i < whole.size(); ++i) {
      EXPECT_LT(relative_error(whole[i] * 1e6, parts[i] * 1e6), 0.01) << i;
    }
  }
}

TEST(Fp8Linear, RefusesWhatDoesNotFit) {
  const TestedWeight w({kOut, kIn}, 1);
  EXPECT_THROW(fp8::linear(at::zeros({kRows, kIn - 1}), w.argument()), c10::Error);
  EXPECT_THROW(fp8::linear(at::zeros({kRows + 1, kIn}), w.argument()), c10::Error);
  EXPECT_THROW(fp8::linear(at::zeros({kRows, kIn}), w.argument(), at::zeros({kRows, kIn})),
               c10::Error);
  EXPECT_THROW(fp8::linear(at::zeros({kRows, kIn}, at::kBFloat16), w.argument()), c10::Error);
}

}  // namespace
}  // namespace stablemask::ops
