#include "stablemask/ops/fp8.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/checks.h"

namespace stablemask::ops::fp8 {
namespace {

using ops::testing::normal;
using ops::testing::refused;
using ops::testing::relative_error;

constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

/// The finite numbers of a format from 0 upwards, by its definition (arXiv 2209.05433, table 1);
/// the position is the code.
std::vector<double> numbers_of(Format format) {
  const bool e4m3 = format == Format::kE4M3;
  const int mantissa_bits = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15, codes = e4m3 ? 0x7f : 0x7c;
  std::vector<double> numbers;
  for (int code = 0; code < codes; ++code) {
    const int exponent = code >> mantissa_bits;
    const double fraction = (code & ((1 << mantissa_bits) - 1)) / std::ldexp(1.0, mantissa_bits);
    numbers.push_back(exponent == 0 ? std::ldexp(fraction, 1 - bias)
                                    : std::ldexp(1 + fraction, exponent - bias));
  }
  return numbers;
}

/// The code of x: the nearest number, of two equally near ones that of even code; clipped.
int code_of(double x, const std::vector<double>& numbers) {
  const double size = std::min(std::abs(x), numbers.back());
  int best = 0;
  for (int code = 1; code < static_cast<int>(numbers.size()); ++code) {
    const double now = std::abs(numbers[code] - size), before = std::abs(numbers[best] - size);
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return best + (std::signbit(x) ? 0x80 : 0);
}

Scaling scaling_of(std::vector<Format> formats, int64_t length = 4, double margin = 1.0) {
  return make_scaling(std::move(formats), length, margin, at::kCPU);
}

/// A slot of scale 2^exponent.
Slot slot_of(Format format, int exponent) {
  const Slot slot = scaling_of({format}).slot(0);
  slot.scale.fill_(std::ldexp(1.0, exponent));
  slot.inverse.fill_(std::ldexp(1.0, -exponent));
  return slot;
}

Matrix quantized(const at::Tensor& x, const Slot& slot, Parts parts = Parts::kBoth) {
  Matrix matrix = make_matrix(x.numel() / x.size(-1), x.size(-1), slot, parts);
  quantize(x, slot, matrix);
  return matrix;
}

at::Tensor codes(const at::Tensor& x) { return x.view(at::kByte); }

at::Tensor numbers(const Matrix& x) { return x.values.to(at::kDouble) * x.inverse.to(at::kDouble); }

double item(const at::Tensor& x) { return x.item<double>(); }

TEST(Fp8, QuantizeRoundsToTheNearestNumberOfTheFormat) {
  for (const Format format : {Format::kE4M3, Format::kE5M2}) {
    const std::vector<double> known = numbers_of(format);
    EXPECT_EQ(known.back(), largest(format));
    const int exponent = 3;
    std::vector<double> given;
    for (size_t code = 0; code + 1 < known.size(); ++code) {  // numbers and the middle between two
      given.push_back(known[code] / 8);
      given.push_back(-(known[code] + known[code + 1]) / 16);
    }
    const at::Tensor some = normal({32 * 16}, 3) * 20;
    for (int64_t i = 0; i < some.numel(); ++i) given.push_back(item(some[i].to(at::kFloat)));
    given.resize(given.size() / 256 * 256);
    const at::Tensor x = at::tensor(given, at::kDouble).to(at::kFloat).view({-1, 16});
    const Matrix matrix = quantized(x, slot_of(format, exponent));
    const at::Tensor got = codes(matrix.values).view({-1});
    for (size_t i = 0; i < given.size(); ++i) {
      ASSERT_EQ(got[static_cast<int64_t>(i)].item<int>(), code_of(8 * given[i], known))
          << given[i] << " as " << type_of(format);
    }
  }
}

TEST(Fp8, QuantizeClipsKeepsTheTwinAndRaisesTheMaximum) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    at::Tensor x = normal({2, 16, 48}, 5, type);
    x[0][3][7] = 1e5;
    x[1][2][1] = -1e6;
    const Slot slot = slot_of(Format::kE4M3, 2);
    const Matrix both = quantized(x, slot);
    EXPECT_TRUE(at::equal(codes(both.twin), codes(both.values).t()));
    EXPECT_EQ(item(both.values[3][7].to(at::kFloat)), 448);
    EXPECT_EQ(item(both.values[18][1].to(at::kFloat)), -448);
    EXPECT_EQ(item(slot.maximum), item(x.to(at::kFloat).abs().max()));
    const Matrix values = quantized(x * 0.5, slot, Parts::kValues);
    EXPECT_FALSE(values.twin.defined());
    EXPECT_EQ(item(slot.maximum), item(x.to(at::kFloat).abs().max())) << "the largest of both";
    const Matrix twin = quantized(x, slot, Parts::kTwin);
    EXPECT_FALSE(twin.values.defined());
    EXPECT_TRUE(at::equal(codes(twin.twin), codes(both.twin)));
  }
}

TEST(Fp8, NumbersThatAreNotFiniteStayVisible) {
  for (const float bad : {kNone, kInfinite, -kInfinite}) {
    at::Tensor x = normal({16, 16}, 7, at::kFloat);
    x[2][5] = bad;
    const Slot slot = slot_of(Format::kE5M2, 0);
    const Matrix matrix = quantized(x, slot);
    EXPECT_TRUE(std::isnan(item(matrix.values[2][5].to(at::kFloat)))) << bad;
    EXPECT_TRUE(std::isnan(item(matrix.twin[5][2].to(at::kFloat)))) << bad;
    EXPECT_EQ(at::isnan(matrix.values.to(at::kFloat)).sum().item<int>(), 1);
    EXPECT_FALSE(std::isfinite(item(slot.maximum))) << bad;
  }
}

TEST(Fp8, ScalesFollowTheHistory) {
  Scaling scaling = scaling_of({Format::kE4M3, Format::kE5M2, Format::kE4M3}, 3);
  const std::vector<std::array<double, 3>> steps = {
      {448, 1.0, 0.03}, {449, 3.0, 1e30}, {7, 1e-5, 1e-30}, {6, 100, 2}, {5, 57344, 2}};
  for (size_t step = 0; step < steps.size(); ++step) {
    for (int64_t i = 0; i < 3; ++i) scaling.maxima[i] = steps[step][i];
    update_scales_(scaling);
    for (int64_t i = 0; i < 3; ++i) {
      double high = 0;
      for (size_t back = 0; back < 3; ++back) {
        const double expected = back > step ? 0.0 : steps[step - back][i];
        EXPECT_EQ(item(scaling.history[i][static_cast<int64_t>(back)]),
                  static_cast<float>(expected));
        high = std::max(high, expected);
      }
      const double scale = item(scaling.scales[i]), limit = largest(scaling.formats[i]);
      EXPECT_EQ(std::exp2(std::round(std::log2(scale))), scale);
      EXPECT_EQ(item(scaling.inverses[i]) * scale, 1.0);
      if (high > 1e20) {
        EXPECT_EQ(scale, std::ldexp(1.0, -60)) << "bounded";
      } else {
        EXPECT_LE(scale * static_cast<float>(high), limit);
        EXPECT_GT(2 * scale * static_cast<float>(high), limit);
      }
    }
    EXPECT_EQ(item(scaling.maxima.abs().sum()), 0.0);
  }
  // 449 > 448 · 1; later maxima fit. 3 < 57,344/1; 100 and 57,344 do not fit the scales before.
  EXPECT_EQ(scaling.saturations[0].item<int>(), 1);
  EXPECT_EQ(scaling.saturations[2].item<int>(), 1);
}

TEST(Fp8, MaximaThatSayNothingLeaveScaleAndHistory) {
  for (const float nothing : {0.0f, kNone, kInfinite}) {
    Scaling scaling = scaling_of({Format::kE4M3});
    scaling.maxima.fill_(7);
    update_scales_(scaling);
    const at::Tensor scale = scaling.scales.clone(), history = scaling.history.clone();
    EXPECT_EQ(item(scale[0]), 64);
    scaling.maxima.fill_(nothing);
    update_scales_(scaling);
    EXPECT_TRUE(at::equal(scaling.scales, scale));
    EXPECT_TRUE(at::equal(scaling.history, history));
    EXPECT_EQ(item(scaling.maxima[0]), 0.0);
    EXPECT_EQ(scaling.saturations[0].item<int>(), 0);
    scaling.maxima.fill_(nothing);
    fit_scale_(scaling.slot(0));
    EXPECT_TRUE(at::equal(scaling.scales, scale));
  }
}

TEST(Fp8, AMarginLeavesRoom) {
  Scaling scaling = scaling_of({Format::kE4M3}, 4, 4.0);
  scaling.maxima.fill_(7);
  update_scales_(scaling);
  EXPECT_EQ(item(scaling.scales[0]), 16);
  scaling.maxima.fill_(28);
  update_scales_(scaling);
  EXPECT_EQ(scaling.saturations[0].item<int>(), 0);
}

TEST(Fp8, AFittedScaleIsThatOfTheTensorsOwnMaximum) {
  const Scaling scaling = scaling_of({Format::kE4M3, Format::kE5M2}, 4, 2.0);
  const at::Tensor x = normal({16, 32}, 11, at::kFloat) * 1e-4;
  for (const int64_t index : {0, 1}) {
    const Slot slot = scaling.slot(index);
    quantized(x, slot);
    fit_scale_(slot);
    const double reach = item(slot.scale) * item(x.abs().max()) * 2.0;
    EXPECT_LE(reach, largest(slot.format));
    EXPECT_GT(2 * reach, largest(slot.format));
    EXPECT_EQ(item(scaling.inverses[index]) * item(scaling.scales[index]), 1.0);
    const double spacing = slot.format == Format::kE4M3 ? 1.0 / 16 : 1.0 / 8;
    EXPECT_LT(relative_error(numbers(quantized(x, slot)), x), spacing);
  }
}

TEST(Fp8, ProductsOfAllThreeDirectionsMatchFp64) {
  const int64_t m = 32, n = 48, k = 64;
  const at::Tensor x = normal({m, k}, 1, at::kFloat), w = normal({n, k}, 2, at::kFloat) * 0.02,
                   dy = normal({m, n}, 3, at::kFloat) * 1e-3;
  const Matrix x8 = quantized(x, slot_of(Format::kE4M3, 6)),
               w8 = quantized(w, slot_of(Format::kE4M3, 12)),
               dy8 = quantized(dy, slot_of(Format::kE5M2, 20));
  const auto expect = [](const Operand& a, const Operand& b, const at::Tensor& exact,
                         const at::Tensor& unquantized) {
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      const double rounding = type == at::kFloat ? 1e-6 : 4e-3;
      at::Tensor out = at::full(exact.sizes(), kNone, type);
      product(out, a, b);
      EXPECT_LT(relative_error(out, exact), rounding);
      EXPECT_LT(relative_error(out, unquantized), 0.1) << "as good as the formats";
      at::Tensor onto = normal(exact.sizes(), 4, type);
      const at::Tensor before = onto.clone();
      product(onto, a, b, 1.0);
      EXPECT_LT(relative_error(onto, exact + before.to(at::kDouble)), rounding);
      product(out, a, b, 1.0, before);
      EXPECT_TRUE(at::equal(out, onto)) << "an addend of its own";
    }
  };
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  expect(x8.direct(), w8.direct(), at::mm(numbers(x8), numbers(w8).t()),
         at::mm(wide(x), wide(w).t()));
  expect(dy8.direct(), w8.turned(), at::mm(numbers(dy8), numbers(w8)), at::mm(wide(dy), wide(w)));
  expect(dy8.turned(), x8.turned(), at::mm(numbers(dy8).t(), numbers(x8)),
         at::mm(wide(dy).t(), wide(x)));
}

/// Checks that `fill` makes the same matrix as quantising `plain`.
template <typename Fill>
void expect_producer(const at::Tensor& plain, Format format, const Fill& fill) {
  const Slot slot = slot_of(format, 4), other = slot_of(format, 4);
  const Matrix expected = quantized(plain.contiguous(), other);
  Matrix matrix = make_matrix(expected.values.size(0), expected.values.size(1), slot, Parts::kBoth);
  fill(slot, matrix);
  EXPECT_TRUE(at::equal(codes(matrix.values), codes(expected.values)));
  EXPECT_TRUE(at::equal(codes(matrix.twin), codes(expected.twin)));
  EXPECT_EQ(item(slot.maximum), item(other.maximum));
}

TEST(Fp8, ProducersHaveTheBitsOfTheirOps) {
  const at::Tensor x = normal({2, 16, 64}, 1, at::kFloat),
                   residual = normal({2, 16, 64}, 2, at::kFloat),
                   weight = normal({64}, 3, at::kFloat), gate_up = normal({32, 64}, 4, at::kFloat),
                   dout = normal({32, 32}, 5, at::kFloat);
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    for (const bool adds : {false, true}) {
      at::Tensor sum = adds ? at::full_like(x, kNone) : at::Tensor(), rstd = at::empty({32});
      const at::Tensor s = adds ? residual + x : x;
      expect_producer(rms_norm(s, weight, 1e-5, kernels), Format::kE4M3,
                      [&](const Slot& slot, Matrix& out) {
                        quantize_rms_norm(x, adds ? residual : at::Tensor(), weight, 1e-5, slot,
                                          sum, rstd, out, kernels);
                      });
      EXPECT_TRUE(!adds || at::equal(sum, s));
      EXPECT_LT(relative_error(rstd, at::rsqrt(s.square().mean(2) + 1e-5).view({-1})), 1e-6);
    }
    expect_producer(swiglu(gate_up, kernels), Format::kE4M3, [&](const Slot& slot, Matrix& out) {
      quantize_swiglu(gate_up, slot, out, kernels);
    });
  }
  const at::Tensor in = gate_up.clone().requires_grad_();
  swiglu(in).backward(dout);
  expect_producer(in.grad(), Format::kE5M2, [&](const Slot& slot, Matrix& out) {
    quantize_swiglu_backward(dout, gate_up, slot, out);
  });
  const at::Tensor packed = normal({2, 16, 3, 16}, 6, at::kFloat).requires_grad_();
  const at::Tensor dpacked = normal({2, 16, 3, 16}, 7, at::kFloat);
  const RopeInputs inputs{16, at::arange(16), rope_table(16, 16, 100.0)};
  rope(packed, 2, inputs.dims, inputs.positions, inputs.table).backward(dpacked);
  expect_producer(packed.grad().view({32, 48}), Format::kE5M2, [&](const Slot& slot, Matrix& out) {
    quantize_rope_backward(dpacked, 2, inputs, slot, out);
  });
  const Slot slot = slot_of(Format::kE5M2, 4);
  Matrix turned = make_matrix(32, 48, slot, Parts::kValues);
  quantize_rope_backward(dpacked, 2, inputs, slot, turned, Kernels::kReference);
  EXPECT_LT(relative_error(numbers(turned), packed.grad().view({32, 48})), 0.1);
  Matrix plain = make_matrix(32, 64, slot, Parts::kValues);
  quantize_swiglu_backward(dout, gate_up, slot, plain, Kernels::kReference);
  EXPECT_LT(relative_error(numbers(plain), in.grad()), 0.1) << "by the formula";
}

TEST(Fp8, ProductsWithAnEpilogueAreThoseOfTheirParts) {
  const Slot slot = slot_of(Format::kE4M3, 4), other = slot_of(Format::kE4M3, 4);
  const Operand x = quantized(normal({32, 16}, 1, at::kFloat), slot_of(Format::kE4M3, 6)).direct();
  const Operand w = quantized(normal({64, 16}, 2, at::kFloat), slot_of(Format::kE4M3, 6)).direct();
  at::Tensor plain = at::empty({32, 64}), gate_up = at::full({32, 64}, kNone);
  product(plain, x, w);
  Matrix out = make_matrix(32, 32, slot, Parts::kBoth);
  Matrix expected = make_matrix(32, 32, other, Parts::kBoth);
  product_swiglu(gate_up, x, w, slot, out, Sums::kFast);
  quantize_swiglu(plain, other, expected);
  EXPECT_TRUE(at::equal(gate_up, plain));
  EXPECT_TRUE(at::equal(codes(out.values), codes(expected.values)));
  EXPECT_TRUE(at::equal(codes(out.twin), codes(expected.twin)));
  const RopeInputs inputs{16, at::arange(16), rope_table(16, 16, 100.0)};
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    at::Tensor packed = at::full({2, 16, 4, 16}, kNone);
    product_rope(packed, x, w, 3, inputs, Sums::kFast, kernels);
    EXPECT_LT(relative_error(
                  packed, rope(plain.view({2, 16, 4, 16}), 3, 16, inputs.positions, inputs.table)),
              1e-6);
  }
}

TEST(Fp8, ArgumentsThatDoNotFitAreRefused) {
  const Slot slot = slot_of(Format::kE4M3, 0), gradients = slot_of(Format::kE5M2, 0);
  const at::Tensor x = normal({16, 32}, 1, at::kFloat);
  Matrix matrix = quantized(x, slot), none;
  refused("[24, 32] cannot be quantised: rows and columns must be multiples of 16",
          [&] { make_matrix(24, 32, slot, Parts::kBoth); });
  refused("out has neither values nor a twin", [&] { quantize(x, slot, none); });
  refused("out.values must be Float8_e5m2 [16, 32]", [&] { quantize(x, gradients, matrix); });
  refused("out.values must be Float8_e4m3fn [32, 32]", [&] {
    quantize(normal({32, 32}, 1, at::kFloat), slot, matrix);
  });
  refused("x must be bf16 or fp32, contiguous", [&] { quantize(x.to(at::kLong), slot, matrix); });
  refused("a slot's numbers must be fp32, 0-dim", [&] { quantize(x, Slot{}, matrix); });
  refused("no tensor 2 of 1", [&] { scaling_of({Format::kE4M3}).slot(2); });
  refused("margin must be a number of at least 1, got 0.5",
          [&] { scaling_of({Format::kE4M3}, 4, 0.5); });
  refused("a length of at least 1, got 0", [&] { scaling_of({Format::kE4M3}, 0); });
  at::Tensor out = at::empty({16, 16});
  const Operand a = matrix.direct(), e5m2 = quantized(x, gradients).direct();
  refused("cannot write [16, 32] · [32, 16]ᵀ to [16, 16]",
          [&] { product(out, a, matrix.turned()); });
  refused("both e5m2", [&] { product(out, e5m2, e5m2); });
  refused("a must be a contiguous FP8 matrix", [&] { product(out, {x, slot.inverse}, a); });
  refused("beta must be 0 or 1, got 0.5", [&] { product(out, a, a, 0.5); });
  refused("addend [16, 8] must have", [&] { product(out, a, a, 1.0, at::empty({16, 8})); });
  EXPECT_EQ(problem(at::kCPU), "");
}

}  // namespace
}  // namespace stablemask::ops::fp8
