// Products with bf16 operands on the CPU, and the ops that use them.
#include "src/ops/cpu_bf16.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "src/ops/cpu_bf16_pack.h"
#include "stablemask/ops/functional.h"
#include "tests/ops/checks.h"

namespace stablemask::ops {
namespace {

using testing::normal;

at::Tensor bf16_of(const at::Tensor& x) { return x.to(at::kBFloat16).to(x.scalar_type()); }

struct Sizes {
  int64_t rows, columns, depth;
};

/// One, primes, multiples of the blocks, and a depth of several parts.
const std::vector<Sizes> kSizes = {{1, 1, 1},      {7, 5, 3},      {64, 128, 32},  {65, 129, 31},
                                   {2, 257, 1025}, {131, 2, 2048}, {67, 131, 2500}};

/// Whether the test runs both ways of multiplying.
std::vector<bool> ways() {
  if (cpu_has_bf16()) return {true, false};
  return {false};
}

at::Tensor factor(int64_t rows, int64_t columns, bool transposed, uint64_t seed) {
  // Rows that do not follow each other in memory.
  const at::Tensor wide = transposed ? normal({columns, rows + 3}, seed, at::kFloat)
                                     : normal({rows, columns + 3}, seed, at::kFloat);
  return wide.narrow(1, 1, transposed ? rows : columns);
}

TEST(CpuBf16Product, IsTheProductOfRoundedFactors) {
  for (const auto& [rows, columns, depth] : kSizes) {
    for (const int form : {0, 1, 2, 3, 4, 5, 6, 7}) {
      const bool a_transposed = form & 1, b_transposed = form & 2, adds = form & 4;
      const at::Tensor a = factor(rows, depth, a_transposed, 1);
      const at::Tensor b = factor(depth, columns, b_transposed, 2);
      const at::Tensor x = bf16_of(a_transposed ? a.t() : a).to(at::kDouble);
      const at::Tensor y = bf16_of(b_transposed ? b.t() : b).to(at::kDouble);
      const at::Tensor before = normal({rows, columns + 2}, 3, at::kFloat).narrow(1, 0, columns);
      const at::Tensor wanted = x.mm(y) + (adds ? before.to(at::kDouble) : at::zeros({}));
      const at::Tensor bound =
          (x.abs().mm(y.abs()) + before.abs()) * 6e-8 * (2 + std::sqrt(static_cast<double>(depth)));
      for (const bool instructions : ways()) {
        at::Tensor out = before.clone();
        cpu::bf16_product(out, {a, a_transposed}, {b, b_transposed}, adds, instructions);
        EXPECT_TRUE(((out - wanted).abs() <= bound).all().item<bool>())
            << rows << " x " << columns << " x " << depth << ", form " << form << ", instructions "
            << instructions << ": " << (out - wanted).abs().max().item<double>();
      }
    }
  }
}

TEST(CpuBf16Product, RoundsAsTheLibraryDoes) {
  const std::vector<float> special = {0.0f,          -0.0f,     1.0f + 0x1p-8f, 1.0f + 0x3p-8f,
                                      1e-40f,        INFINITY,  -INFINITY,      NAN,
                                      3.4028235e38f, -1.00001f, 65504.0f};
  for (const int64_t rows : {1, 2, 15, 16, 33}) {
    for (const int64_t cols : {1, 2, 31, 32, 65}) {
      at::Tensor x = normal({rows, cols}, 4, at::kFloat);
      for (int64_t i = 0; i < std::min<int64_t>(x.numel(), special.size()); ++i) {
        x.view({-1})[x.numel() - 1 - i].fill_(special[static_cast<size_t>(i)]);
      }
      for (const bool down : {false, true}) {
        const cpu::bf16::Words words{x.const_data_ptr<float>(), rows, cols, cols, down};
        // Pairs of bf16 numbers [height, width, 2].
        at::Tensor numbers = at::zeros(
            {words.height() * (down ? 2 : 1), words.width() * (down ? 1 : 2)}, at::kBFloat16);
        // Instructions for bf16 take numbers below the smallest normal one for 0.
        const at::Tensor tiny = x.abs() < std::numeric_limits<float>::min();
        numbers.narrow(0, 0, rows)
            .narrow(1, 0, cols)
            .copy_(cpu_has_bf16() ? x.masked_fill(tiny, 0.0f) : x);
        const at::Tensor pairs =
            down ? numbers.view({words.height(), 2, words.width()}).transpose(1, 2)
                 : numbers.view({words.height(), words.width(), 2});
        for (const bool transposed : {false, true}) {
          const int64_t stride = (transposed ? words.height() : words.width()) + 1;
          at::Tensor out =
              at::zeros({transposed ? words.width() : words.height(), stride, 2}, at::kBFloat16);
          cpu::bf16::pack(words, reinterpret_cast<uint32_t*>(out.data_ptr()), stride, transposed);
          const at::Tensor found = out.narrow(1, 0, stride - 1);
          const at::Tensor wanted = transposed ? pairs.transpose(0, 1) : pairs;
          EXPECT_TRUE(at::equal(found.isnan(), wanted.isnan())) << rows << " x " << cols;
          EXPECT_TRUE(at::equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0)))
              << rows << " x " << cols << " " << down << transposed;
          EXPECT_TRUE(at::equal(out.select(1, stride - 1), at::zeros_like(out.select(1, 0))));
        }
      }
    }
  }
}

TEST(CpuBf16Product, HasTheSameBitsWithAnyNumberOfThreads) {
  if (!cpu_has_bf16()) GTEST_SKIP() << "this CPU has no instructions for bf16";
  const at::Tensor a = normal({200, 300}, 1, at::kFloat), b = normal({300, 260}, 2, at::kFloat);
  const int before = at::get_num_threads();
  at::Tensor first = at::empty({200, 260}), again = at::empty({200, 260});
  at::set_num_threads(1);
  cpu::bf16_product(first, {a}, {b}, /*adds=*/false);
  at::set_num_threads(3);
  cpu::bf16_product(again, {a}, {b}, /*adds=*/false);
  at::set_num_threads(before);
  EXPECT_TRUE(at::equal(first, again));
}

TEST(CpuBf16Product, TakesEmptyMatricesAndRefusesOthers) {
  at::Tensor out = at::ones({2, 3}), none = at::ones({0, 3});
  cpu::bf16_product(out, {at::ones({2, 0})}, {at::ones({0, 3})}, /*adds=*/true);
  EXPECT_TRUE(at::equal(out, at::ones({2, 3})));
  cpu::bf16_product(out, {at::ones({2, 0})}, {at::ones({0, 3})}, /*adds=*/false);
  EXPECT_TRUE(at::equal(out, at::zeros({2, 3})));
  cpu::bf16_product(none, {at::ones({0, 4})}, {at::ones({4, 3})}, /*adds=*/false);
  EXPECT_THROW(cpu::bf16_product(out, {at::ones({2, 4})}, {at::ones({5, 3})}, false), c10::Error);
  EXPECT_THROW(cpu::bf16_product(out, {at::ones({2, 4}, at::kDouble)}, {at::ones({4, 3})}, false),
               c10::Error);
  EXPECT_THROW(cpu::bf16_product(out, {at::ones({4, 2}).t()}, {at::ones({4, 3})}, false),
               c10::Error);
}

/// Value and gradients of an op with weights, in fp32 with bf16 products and in fp64, must differ
/// by what rounding its operands explains, and must differ.
void expect_rounded(const std::string& name, const testing::Tensors& inputs,
                    const std::function<at::Tensor(const testing::Tensors&, Kernels)>& op) {
  const auto run = [&](at::ScalarType type, Kernels kernels) {
    const auto f = [&](const testing::Tensors& x) { return op(x, kernels); };
    const at::Tensor direction = at::ones_like(f(inputs)).mul_(0.5);
    return testing::evaluate(f, inputs, direction, type);
  };
  const auto exact = run(at::kDouble, Kernels::kReference);
  const auto plain = run(at::kFloat, Kernels::kFused);
  const auto found = run(at::kFloat, Kernels::kFusedBf16);
  const auto compare = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                           size_t i) {
    if (!a.defined()) return;
    const double error = testing::relative_error(a, c);
    EXPECT_LT(testing::relative_error(b, c), 2e-6) << name << " " << i;
    EXPECT_LT(error, 8e-3) << name << " " << i;
    EXPECT_GT(error, 1e-5) << name << " " << i;
  };
  compare(found.value, plain.value, exact.value, 99);
  for (size_t i = 0; i < found.grads.size(); ++i) {
    compare(found.grads[i], plain.grads[i], exact.grads[i], i);
  }
}

TEST(CpuBf16Ops, RoundTheOperandsOfEveryProduct) {
  const at::Tensor x = normal({2, 17, 24}, 1);
  // Sums of squares, so that gradients depend on every product.
  expect_rounded("linear", {x, normal({40, 24}, 2)}, [](const auto& in, Kernels kernels) {
    return ops::linear(in[0], in[1], kernels).pow(2).mean();
  });
  expect_rounded("linear_add", {x, normal({24, 24}, 2)}, [](const auto& in, Kernels kernels) {
    return ops::linear_add(in[0], in[1], in[0], kernels).pow(2).mean();
  });
  expect_rounded(
      "swiglu", {x, normal({64, 24}, 2) * 0.2, normal({24, 32}, 3)},
      [](const auto& in, Kernels kernels) {
        return ops::swiglu_feed_forward(in[0], in[1], in[2], in[0], kernels).pow(2).mean();
      });
  const at::Tensor positions = at::arange(17, at::kLong);
  expect_rounded("rope", {x, normal({3 * 16, 24}, 2)}, [&](const auto& in, Kernels kernels) {
    const at::Tensor table = normal({17, 8}, 5).to(in[0].scalar_type());
    return ops::rope_linear(in[0], in[1], 3, 2, {8, positions, table}, kernels).pow(2).mean();
  });
  const at::Tensor targets = testing::integers(50, {34}, 6);
  expect_rounded("cross entropy", {x.view({34, 24}), normal({50, 24}, 2)},
                 [&](const auto& in, Kernels kernels) {
                   const at::Tensor scale = at::full({}, 1.0 / 34, at::kDouble);
                   return ops::linear_cross_entropy(in[0], in[1], targets, scale, 0.0,
                                                    HeadGradient::kInBackward, kernels);
                 });
}

}  // namespace
}  // namespace stablemask::ops
