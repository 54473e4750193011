#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "stablemask/ops/fp8.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/checks.h"

/// FP8's kernels against its reference, which runs on the CPU and on the GPU.
namespace stablemask::ops::fp8 {
namespace {

using ops::testing::relative_error;

at::TensorOptions gpu(at::ScalarType type) { return at::TensorOptions(type).device(at::kCUDA); }

at::Tensor random(at::IntArrayRef sizes, at::ScalarType type, double size = 1.0) {
  return (at::randn(sizes, gpu(at::kFloat)) * size).to(type);
}

class GpuFp8 : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    const std::string none = problem(at::Device(at::kCUDA, 0));
    if (!none.empty()) GTEST_SKIP() << none;
    at::manual_seed(8);
    // Not the user's: read once a process, before the first product.
    ::setenv("STABLEMASK_CACHE", (::testing::TempDir() + "/stablemask-fp8").c_str(), 1);
  }
};

/// A slot of scale 2^exponent.
Slot slot_of(Format format, int exponent) {
  const Slot slot = make_scaling({format}, 4, 1.0, at::kCUDA).slot(0);
  slot.scale.fill_(std::ldexp(1.0, exponent));
  slot.inverse.fill_(std::ldexp(1.0, -exponent));
  return slot;
}

Matrix poisoned(int64_t rows, int64_t columns, const Slot& slot, Parts parts) {
  Matrix matrix = make_matrix(rows, columns, slot, parts);
  for (at::Tensor* part : {&matrix.values, &matrix.twin}) {
    if (part->defined()) part->view(at::kByte).fill_(0x55);
  }
  return matrix;
}

/// The same codes; of NaN only that it is one, as its sign has no meaning.
bool same(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor bad_a = at::isnan(a.to(at::kFloat)), bad_b = at::isnan(b.to(at::kFloat));
  const at::Tensor alike = at::logical_or(bad_a, a.view(at::kByte) == b.view(at::kByte));
  return at::equal(bad_a, bad_b) && alike.all().item<bool>();
}

/// Checks that `fill(slot, out, kernels)` writes every part with the bits of the reference.
template <typename Fill>
void expect_bits(int64_t rows, int64_t columns, Format format, const std::string& what,
                 const Fill& fill) {
  for (const Parts parts : {Parts::kBoth, Parts::kValues, Parts::kTwin}) {
    const Slot slot = slot_of(format, 5), other = slot_of(format, 5);
    Matrix out = poisoned(rows, columns, slot, parts);
    Matrix expected = poisoned(rows, columns, other, Parts::kBoth);
    fill(slot, out, Kernels::kFused);
    fill(other, expected, Kernels::kReference);
    if (out.values.defined()) {
      EXPECT_TRUE(same(out.values, expected.values)) << what;
    }
    if (out.twin.defined()) {
      EXPECT_TRUE(same(out.twin, expected.values.t())) << what << ", twin";
    }
    EXPECT_TRUE(at::equal(slot.maximum, other.maximum) ||
                (std::isnan(slot.maximum.item<float>()) && std::isnan(other.maximum.item<float>())))
        << what << ", maximum " << slot.maximum.item<float>();
  }
}

constexpr std::array<std::array<int64_t, 2>, 6> kSizes = {
    {{16, 16}, {16, 2048}, {144, 272}, {1040, 400}, {128, 128}, {4096, 1024}}};
constexpr Format kFormats[] = {Format::kE4M3, Format::kE5M2};
constexpr at::ScalarType kTypes[] = {at::kBFloat16, at::kFloat};

TEST_F(GpuFp8, QuantizeHasTheBitsOfTheReference) {
  for (const auto& [rows, columns] : kSizes) {
    for (const Format format : kFormats) {
      for (const auto type : kTypes) {
        at::Tensor x = random({rows, columns}, type, 2.0);
        x[0][0] = 1e6;
        x[rows - 1][columns - 1] = -1e30;
        x.select(0, rows / 2).mul_(1e-6);
        const auto fill = [&](const Slot& slot, Matrix& out, Kernels kernels) {
          quantize(x, slot, out, kernels);
        };
        const std::string what = c10::str(type, " ", x.sizes(), " as ", type_of(format));
        expect_bits(rows, columns, format, what, fill);
        x[rows / 2][columns / 2] = std::numeric_limits<double>::infinity();
        x[1][3] = std::numeric_limits<double>::quiet_NaN();
        expect_bits(rows, columns, format, what + ", not finite", fill);
      }
    }
  }
}

TEST_F(GpuFp8, QuantizeTakesAnyAlignment) {
  const at::Tensor wide = random({48 * 64 + 1}, at::kBFloat16);
  const at::Tensor x = wide.narrow(0, 1, 48 * 64).view({48, 64});
  expect_bits(48, 64, Format::kE4M3, "odd address",
              [&](const Slot& slot, Matrix& out, Kernels k) { quantize(x, slot, out, k); });
}

/// Quantises what the op of the same device gives, and expects the producer's bits.
template <typename Op, typename Fill>
void expect_producer(const Op& op, Format format, const std::string& what, const Fill& fill) {
  const at::Tensor plain = op().contiguous();
  const int64_t columns = plain.size(-1), rows = plain.numel() / columns;
  expect_bits(rows, columns, format, what, [&](const Slot& slot, Matrix& out, Kernels kernels) {
    if (kernels == Kernels::kReference) return quantize(plain, slot, out, kernels);
    fill(slot, out);
  });
}

TEST_F(GpuFp8, RmsNormHasTheBitsOfItsOp) {
  for (const auto& [rows, columns] : kSizes) {
    for (const auto type : kTypes) {
      for (const bool adds : {false, true}) {
        const at::Tensor x = random({rows, columns}, type), weight = random({columns}, type);
        const at::Tensor residual = adds ? random({rows, columns}, type) : at::Tensor();
        at::Tensor sum = adds ? at::empty_like(x) : at::Tensor();
        at::Tensor rstd = at::zeros({rows}, gpu(at::kFloat));
        const at::Tensor s = adds ? residual + x : x;
        const std::string what = c10::str("rms_norm ", type, " ", x.sizes());
        expect_producer([&] { return rms_norm(s, weight, 1e-5); }, Format::kE4M3, what,
                        [&](const Slot& slot, Matrix& out) {
                          quantize_rms_norm(x, residual, weight, 1e-5, slot, sum, rstd, out);
                        });
        EXPECT_TRUE(!adds || at::equal(sum, s)) << what;
        const at::Tensor squares = s.to(at::kDouble).square().mean(1);
        EXPECT_LT(relative_error(rstd, at::rsqrt(squares + 1e-5)), 1e-6) << what;
      }
    }
  }
}

TEST_F(GpuFp8, SwigluAndItsGradientHaveTheBitsOfTheirOp) {
  for (const auto& [rows, columns] : kSizes) {
    for (const auto type : kTypes) {
      const at::Tensor gate_up = random({rows, 2 * columns}, type).requires_grad_();
      const at::Tensor dout = random({rows, columns}, type), given = gate_up.detach();
      const at::Tensor out = swiglu(gate_up);
      out.backward(dout);
      const std::string what = c10::str("swiglu ", type, " ", gate_up.sizes());
      expect_producer([&] { return out.detach(); }, Format::kE4M3, what,
                      [&](const Slot& slot, Matrix& to) { quantize_swiglu(given, slot, to); });
      expect_producer(
          [&] { return gate_up.grad(); }, Format::kE5M2, what + " gradient",
          [&](const Slot& slot, Matrix& to) { quantize_swiglu_backward(dout, given, slot, to); });
    }
  }
}

TEST_F(GpuFp8, RopesGradientHasTheBitsOfItsOp) {
  struct Sizes {
    int64_t batch, length, heads, dim, rotated, dims;
  };
  for (const Sizes& s : {Sizes{2, 24, 6, 64, 4, 64}, Sizes{1, 144, 5, 128, 3, 128},
                         Sizes{2, 64, 6, 64, 4, 32}, Sizes{1, 16, 3, 48, 2, 20}}) {
    for (const auto type : kTypes) {
      const at::Tensor packed = random({s.batch, s.length, s.heads, s.dim}, type).requires_grad_();
      const at::Tensor dpacked = random(packed.sizes(), type);
      const RopeInputs inputs{s.dims, at::arange(s.length, gpu(at::kLong)),
                              rope_table(s.length, s.dims, 1e4).to(at::kCUDA)};
      rope(packed, s.rotated, s.dims, inputs.positions, inputs.table).backward(dpacked);
      const at::Tensor grad = packed.grad().view({-1, s.heads * s.dim});
      expect_producer([&] { return grad; }, Format::kE5M2, c10::str("rope ", type, packed.sizes()),
                      [&](const Slot& slot, Matrix& out) {
                        quantize_rope_backward(dpacked, s.rotated, inputs, slot, out);
                      });
    }
  }
}

TEST_F(GpuFp8, ScalesHaveTheBitsOfTheReference) {
  std::vector<Format> formats(150, Format::kE4M3);
  for (size_t i = 0; i < formats.size(); i += 3) formats[i] = Format::kE5M2;
  Scaling scaling = make_scaling(formats, 5, 1.5, at::kCUDA);
  Scaling expected = make_scaling(formats, 5, 1.5, at::kCUDA);
  for (int step = 0; step < 8; ++step) {
    const at::Tensor maxima = at::exp2(random({150}, at::kFloat, 40.0));
    maxima.narrow(0, 10 * step, 3).fill_(0);
    maxima.narrow(0, 10 * step + 3, 2).fill_(std::numeric_limits<float>::infinity());
    maxima.narrow(0, 10 * step + 5, 2).fill_(std::numeric_limits<float>::quiet_NaN());
    for (Scaling* each : {&scaling, &expected}) {
      each->maxima.copy_(maxima);
      update_scales_(*each, each == &scaling ? Kernels::kFused : Kernels::kReference);
    }
    EXPECT_TRUE(at::equal(scaling.history, expected.history)) << step;
    EXPECT_TRUE(at::equal(scaling.scales, expected.scales)) << step;
    EXPECT_TRUE(at::equal(scaling.inverses, expected.inverses)) << step;
    EXPECT_TRUE(at::equal(scaling.saturations, expected.saturations)) << step;
    EXPECT_EQ(scaling.maxima.abs().sum().item<float>(), 0.0f) << step;
  }
}

Operand operand(int64_t rows, int64_t inner, Format format) {
  const Slot slot = slot_of(format, 6);
  Matrix matrix = make_matrix(rows, inner, slot, Parts::kValues);
  quantize(random({rows, inner}, at::kBFloat16), slot, matrix);
  return matrix.direct();
}

at::Tensor exact_numbers(const Operand& x) {
  return x.values.to(at::kDouble) * x.inverse.to(at::kDouble);
}

/// Errors against fp64 of the same FP8 numbers. The tensor cores' sums have about 14 bits.
void expect_product(const Operand& a, const Operand& b, const std::string& what) {
  const at::Tensor exact = at::mm(exact_numbers(a), exact_numbers(b).t());
  for (const auto type : kTypes) {
    for (const Sums sums : {Sums::kPromoted, Sums::kFast}) {
      const double bound =
          (sums == Sums::kFast ? 2e-3 : 3e-4) + (type == at::kBFloat16 ? 2.5e-3 : 0.0);
      at::Tensor out = at::full(exact.sizes(), NAN, gpu(type));
      product(out, a, b, 0.0, {}, sums);
      EXPECT_LT(relative_error(out, exact), bound) << what << " " << type;
      const at::Tensor before = random(exact.sizes(), type);
      at::Tensor onto = before.clone();
      product(onto, a, b, 1.0, {}, sums);
      EXPECT_LT(relative_error(onto, exact + before.to(at::kDouble)), bound) << what << " onto";
      product(out, a, b, 1.0, before, sums);
      EXPECT_LT(relative_error(out, exact + before.to(at::kDouble)), bound) << what << " addend";
      at::Tensor again = before.clone();
      product(again, a, b, 1.0, {}, sums);
      EXPECT_TRUE(at::equal(again, onto)) << what << ": the same bits again";
    }
  }
}

TEST_F(GpuFp8, ProductsMatchFp64) {
  const std::vector<std::array<int64_t, 3>> sizes = {
      {16, 16, 16}, {48, 144, 272}, {528, 400, 1040}, {1024, 768, 1024}, {272, 528, 4096}};
  for (const auto& [m, n, k] : sizes) {
    const std::string what = c10::str(m, " x ", n, " x ", k);
    expect_product(operand(m, k, Format::kE4M3), operand(n, k, Format::kE4M3), what);
    expect_product(operand(m, k, Format::kE5M2), operand(n, k, Format::kE4M3), what + ", a e5m2");
    expect_product(operand(m, k, Format::kE4M3), operand(n, k, Format::kE5M2), what + ", b e5m2");
  }
}

/// {rows, K, F}: tile edges, and several waves of the whole GPU.
constexpr std::array<std::array<int64_t, 3>, 4> kLargeSizes = {
    {{2064, 272, 1040}, {4096, 1024, 1536}, {2048, 64, 2096}, {8192, 2048, 2816}}};

TEST_F(GpuFp8, ProductsTakeInversesAtAnyAddress) {
  const Operand a = operand(64, 128, Format::kE4M3), b = operand(96, 128, Format::kE4M3);
  const at::Tensor numbers = at::full({3}, a.inverse.item<float>(), gpu(at::kFloat));
  at::Tensor out = at::empty({64, 96}, gpu(at::kFloat)), other = at::empty_like(out);
  product(out, a, b);
  product(other, {a.values, numbers[1]}, {b.values, numbers[2]});
  EXPECT_TRUE(at::equal(out, other));
}

TEST_F(GpuFp8, ProductWithSwigluHasTheBitsOfSeparateKernels) {
  for (const auto& [rows, inner, features] : kLargeSizes) {
    const Operand x = operand(rows, inner, Format::kE4M3);
    const Operand weight = operand(2 * features, inner, Format::kE4M3);
    const at::Tensor exact = at::mm(exact_numbers(x), exact_numbers(weight).t());
    const std::string what = c10::str(rows, " x ", inner, ", features ", features);
    at::Tensor gate_up = at::full({rows, 2 * features}, NAN, gpu(at::kBFloat16));
    const int exponent = static_cast<int>(std::round(-std::log2(static_cast<double>(inner)))) + 6;
    const Slot slot = slot_of(Format::kE4M3, exponent), other = slot_of(Format::kE4M3, exponent);
    Matrix out = poisoned(rows, features, slot, Parts::kBoth);
    Matrix expected = poisoned(rows, features, other, Parts::kBoth);
    product_swiglu(gate_up, x, weight, slot, out, Sums::kFast);
    quantize_swiglu(gate_up, other, expected);
    EXPECT_LT(relative_error(gate_up, exact), 4e-3) << what;
    EXPECT_TRUE(same(out.values, expected.values)) << what;
    EXPECT_TRUE(same(out.twin, expected.twin)) << what << ", twin";
    EXPECT_TRUE(at::equal(slot.maximum, other.maximum)) << what;
  }
}

TEST_F(GpuFp8, ProductWithRopeMatchesSeparateOps) {
  for (const int64_t dim : {64, 128, 256}) {
    const int64_t batch = 4, length = 528, heads = 2048 / dim, rotated = heads - 1;
    const Operand x = operand(batch * length, 400, Format::kE4M3);
    const Operand weight = operand(heads * dim, 400, Format::kE4M3);
    const RopeInputs inputs{dim, at::arange(length, gpu(at::kLong)),
                            rope_table(length, dim, 1e4).to(at::kCUDA)};
    const at::Tensor plain = at::mm(exact_numbers(x), exact_numbers(weight).t());
    const at::Tensor exact = ops::reference::rope(plain.view({batch, length, heads, dim}), rotated,
                                                  dim, inputs.positions, inputs.table);
    for (const Sums sums : {Sums::kFast, Sums::kPromoted}) {
      at::Tensor packed = at::full(exact.sizes(), NAN, gpu(at::kBFloat16));
      product_rope(packed, x, weight, rotated, inputs, sums);
      EXPECT_LT(relative_error(packed, exact), 5e-3) << dim;
    }
  }
}

TEST_F(GpuFp8, AReplayedGraphReadsTensorsAndScalesAnew) {
  const int64_t m = 64, n = 96, k = 128;
  Scaling scaling = make_scaling({Format::kE4M3, Format::kE4M3}, 4, 1.0, at::kCUDA);
  at::Tensor x = random({m, k}, at::kBFloat16), w = random({n, k}, at::kBFloat16);
  at::Tensor out = at::empty({m, n}, gpu(at::kBFloat16));
  Matrix x8 = make_matrix(m, k, scaling.slot(0), Parts::kBoth);
  Matrix w8 = make_matrix(n, k, scaling.slot(1), Parts::kBoth);
  const auto step = [&] {
    quantize(x, scaling.slot(0), x8);
    quantize(w, scaling.slot(1), w8);
    product(out, x8.direct(), w8.direct());
    update_scales_(scaling);
  };
  Graph graph(at::Device(at::kCUDA, 0));
  const Graph::OnItsStream on_stream(graph);
  step();
  graph.record(step);
  for (const double size : {1e-3, 1.0, 500.0}) {
    x.copy_(random({m, k}, at::kBFloat16, size));
    graph.replay();  // scales of earlier maxima
    graph.replay();
    const at::Tensor exact = at::mm(x.to(at::kDouble), w.to(at::kDouble).t());
    EXPECT_LT(relative_error(out / size, exact / size), 0.05) << size;
  }
}

}  // namespace
}  // namespace stablemask::ops::fp8
