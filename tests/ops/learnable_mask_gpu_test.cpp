// Kernels of a learnable StableMask on a GPU: log S, its gradient, and the gradient ∂L/∂log S.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/function.h>

#include <array>
#include <string>
#include <vector>

#include "src/ops/kernels.h"
#include "stablemask/ops/attention.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/checks.h"
#include "tests/ops/gpu_errors.h"

namespace stablemask::ops {
namespace {

using namespace testing_gpu;
using at::Tensor;
using testing::evaluate;
using testing::Evaluation;
using testing::expect_as_accurate;
using testing::Tensors;
using Kind = MaskLength::Kind;

class GpuLearnableMask : public GpuTest {};

/// Results of a corrected attention: dout, out [B,T,H,D]; lse [B,H,T]; log_mass [H,T] or [B,H,T].
struct Corrected {
  Tensor dout, out, lse, log_mass;
};

/// Rows with log S = −inf hold NaN in `out`, which must not be read.
Corrected corrected(const std::array<int64_t, 4>& shape, bool per_sequence, at::ScalarType type) {
  const auto& [batch, length, heads, dim] = shape;
  Corrected c;
  c.dout = random({batch, length, heads, dim}, type);
  c.out = random({batch, length, heads, dim}, type);
  c.log_mass = per_sequence ? random({batch, heads, length}, at::kFloat, 2.0)
                            : random({heads, length}, at::kFloat, 2.0);
  c.lse = at::logaddexp(random({batch, heads, length}, at::kFloat, 2.0), c.log_mass);
  const int64_t without = length / 3;
  c.log_mass.narrow(-1, length - without, without).fill_(-kInfinity);
  c.out.narrow(1, length - without, without).fill_(kNan);
  return c;
}

Tensor mass_gradient(const Corrected& c, at::ScalarType math) {
  const Tensor without = at::isinf(c.log_mass);
  const Tensor ratio = at::exp(c.log_mass.to(math) - c.lse.to(math));
  const Tensor d = (c.dout.to(math) * c.out.to(math)).sum(3).transpose(1, 2);
  const Tensor gradient = -(ratio * d).masked_fill(without, 0.0);
  return c.log_mass.dim() == 2 ? gradient.sum(0) : gradient;
}

void check_mass_gradient(const Corrected& c, const std::string& what) {
  const Tensor got = cuda::stable_mask_mass_gradient(c.dout, c.out, c.lse, c.log_mass);
  ASSERT_EQ(got.sizes(), c.log_mass.sizes()) << what;
  expect_as_exact(got, mass_gradient(c, at::kFloat), mass_gradient(c, at::kDouble), what);
  EXPECT_TRUE(at::equal(got, cuda::stable_mask_mass_gradient(c.dout, c.out, c.lse, c.log_mass)))
      << what << " again";
  EXPECT_EQ(got.masked_select(at::isinf(c.log_mass)).count_nonzero().item<int64_t>(), 0) << what;
}

TEST_F(GpuLearnableMask, MassGradientIsAsAccurateAsEager) {
  const std::vector<std::array<int64_t, 4>> shapes = {
      {1, 1, 1, 1},    {1, 9, 1, 8},      {2, 17, 3, 64},  {5, 127, 12, 64}, {19, 64, 8, 64},
      {64, 33, 5, 32}, {3, 512, 16, 128}, {3, 33, 17, 80}, {9, 5, 2, 7},     {1, 64, 33, 256}};
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : shapes) {
      for (const bool per_sequence : {false, true}) {
        const std::string what = describe("mass gradient", shape, type);
        Corrected c = corrected(shape, per_sequence, type);
        check_mass_gradient(c, what);
        c.out = c.out.transpose(1, 2).contiguous().transpose(1, 2);
        c.lse = c.lse.transpose(1, 2).contiguous().transpose(1, 2);
        check_mass_gradient(c, what + " heads first");
        const auto& [batch, length, heads, dim] = shape;
        const Tensor wide_out = poisoned({batch, length, heads, dim + 1}, type);
        c.out = wide_out.narrow(3, 1, dim).copy_(c.out);
        c.dout = c.dout.select(3, 0).unsqueeze(3).expand(shape);
        check_mass_gradient(c, what + " unaligned, dout expanded");
      }
    }
  }
}

TEST_F(GpuLearnableMask, GradientOfAnInfiniteMassIsZero) {
  Corrected c = corrected({2, 12, 2, 8}, false, at::kBFloat16);
  c.log_mass[1][2] = kInfinity;
  c.lse.select(1, 1).select(1, 2).fill_(kInfinity);
  c.out.select(2, 1).select(1, 2).zero_();
  check_mass_gradient(c, "infinite mass");
}

TEST_F(GpuLearnableMask, MassGradientThrowsForInvalidTensors) {
  const Corrected c = corrected({2, 12, 2, 8}, false, at::kFloat);
  EXPECT_THROW(cuda::stable_mask_mass_gradient(c.dout.narrow(0, 0, 1), c.out, c.lse, c.log_mass),
               c10::Error);
  EXPECT_THROW(cuda::stable_mask_mass_gradient(c.dout, c.out, c.lse.to(at::kDouble), c.log_mass),
               c10::Error);
  EXPECT_THROW(cuda::stable_mask_mass_gradient(c.dout, c.out, c.lse, c.log_mass.unsqueeze(0)),
               c10::Error);
}

/// gamma on both sides of the series' limit 1/4, p_base of both signs; exact in fp32. gamma = 0 has
/// an infinite mass for N = ∞.
Tensors head_values() {
  const Tensor gamma = at::tensor({0.0, 1e-6, 1e-3, 0.1, 0.24, 0.26, 1.0, 40.0}, at::kFloat);
  const Tensor p_base = at::tensor({0.0, -1.5, 0.7, 0.3, -0.2, 2.0, 0.0, 1.0}, at::kFloat);
  return {gamma.to(at::kDouble), p_base.to(at::kDouble)};
}

/// Compares log S and the gradients of gamma and p_base on the GPU with the formula in fp64.
void check_log_mass(const testing::Function& log_mass, const Tensors& values,
                    const std::string& what) {
  const Tensor direction = testing::normal(log_mass(values).sizes(), 5, at::kFloat);
  const Evaluation kernel = evaluate(log_mass, values, direction, at::kFloat, at::kCUDA);
  const Evaluation truth = evaluate(log_mass, values, direction, at::kDouble);
  EXPECT_TRUE(at::allclose(wide(kernel.value).cpu(), truth.value, 1e-6, 1e-6)) << what;
  const char* names[] = {": dgamma", ": dp_base"};
  for (int i = 0; i < 2; ++i) {
    const Tensor bound = 1e-6 * (1.0 + truth.grads[i].abs());
    const Tensor difference = (wide(kernel.grads[i]).cpu() - truth.grads[i]).abs();
    EXPECT_TRUE((difference <= bound).all().item<bool>()) << what << names[i] << "\n"
                                                          << kernel.grads[i] << "\n"
                                                          << truth.grads[i];
  }
}

TEST_F(GpuLearnableMask, LogMassMatchesTheFormula) {
  const std::vector<MaskLength> lengths = {
      {Kind::kFixed, 1},       {Kind::kFixed, 2},    {Kind::kFixed, 300},
      {Kind::kFixed, 777},     {Kind::kFixed, 4096}, {Kind::kFixed, 300, true},
      {Kind::kFixed, 1, true}, {Kind::kSequence, 0}, {Kind::kInfinite, 0}};
  for (const MaskLength& length : lengths) {
    const Tensors values = head_values();
    for (const int64_t offset : {0, 290}) {
      const auto rows = [&](const Tensors& x) {
        return log_pseudo_mass({x[0], x[1], length}, 777, offset);
      };
      check_log_mass(rows, values,
                     c10::str("N ", length.n, ", kind ", static_cast<int>(length.kind), ", beyond ",
                              length.infinite_beyond, ", offset ", offset));
    }
  }
}

TEST_F(GpuLearnableMask, LogMassOfGivenPositionsMatchesTheFormula) {
  const Tensor positions = testing::integers(50, {3, 37}, 11);
  for (const MaskLength& length :
       {MaskLength{Kind::kFixed, 40}, MaskLength{Kind::kFixed, 40, true}}) {
    const auto rows = [&](const Tensors& x) {
      return log_pseudo_mass({x[0], x[1], length}, positions.to(x[0].device()), 50);
    };
    check_log_mass(rows, head_values(), "positions");
  }
}

TEST_F(GpuLearnableMask, LogMassOfNoRowsHasZeroGradients) {
  const auto none = [](const Tensors& x) {
    return log_pseudo_mass({x[0], x[1], {Kind::kFixed, 8}}, 0);
  };
  check_log_mass(none, head_values(), "no rows");
}

struct PackedCase {
  int64_t length, heads, kv_heads, dim;
  MaskLength mask;
  bool alibi;
  std::string name() const {
    return c10::str("T ", length, " H ", heads, "/", kv_heads, " D ", dim, " N ", mask.n, " kind ",
                    static_cast<int>(mask.kind), " beyond ", mask.infinite_beyond, " ALiBi ",
                    alibi);
  }
};

/// Gradients of the packed projection (q, k and v separately), gamma and p_base.
void check_packed(const PackedCase& c) {
  const int64_t packed_heads = c.heads + 2 * c.kv_heads;
  const auto exact = [](const Tensor& x) { return x.to(at::kBFloat16).to(at::kFloat); };
  const Tensors leaves = {random({2, c.length, packed_heads, c.dim}, at::kBFloat16),
                          exact(at::rand({c.heads}, gpu(at::kFloat)) + 0.02),
                          exact(at::randn({c.heads}, gpu(at::kFloat)))};
  const auto options = [&](const Tensors& in) {
    const auto math = in[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    AttentionOptions o;
    if (c.alibi) o.alibi_slopes = alibi_slopes(c.heads).to(at::kCUDA);
    o.pseudo = PseudoScores{in[1].to(math), in[2].to(math), c.mask};
    return o;
  };
  const auto fused = [&](const Tensors& in) {
    const Tensor out = packed_attention(in[0], c.heads, c.kv_heads, options(in));
    EXPECT_NE(out.grad_fn()->name().find("FusedAttention"), std::string::npos) << c.name();
    return out;
  };
  const auto plain = [&](const Tensors& in) {
    const auto [q, k, v] = split_heads(in[0], c.heads, c.kv_heads);
    return reference::attention(q, k, v, options(in), in[0].scalar_type());
  };
  const Tensor dout = random({2, c.length, c.heads, c.dim}, at::kBFloat16);
  const Evaluation mine = evaluate(fused, leaves, dout, at::kBFloat16, at::kCUDA);
  const Evaluation eager = evaluate(plain, leaves, dout, at::kBFloat16, at::kCUDA);
  const Evaluation truth = evaluate(plain, leaves, dout, at::kDouble, at::kCUDA);
  constexpr double kEps = 6e-3;  // as in attention_gpu_test
  expect_as_accurate(mine.value, eager.value, truth.value, kEps, c.name() + ": out");
  const int64_t first[] = {0, c.heads, c.heads + c.kv_heads, packed_heads};
  const char* names[] = {": dq", ": dk", ": dv"};
  for (int part = 0; part < 3; ++part) {
    const auto of = [&](const Evaluation& e) {
      return e.grads[0].narrow(2, first[part], first[part + 1] - first[part]);
    };
    expect_as_accurate(of(mine), of(eager), of(truth), kEps, c.name() + names[part]);
  }
  expect_as_accurate(mine.grads[1], eager.grads[1], truth.grads[1], kEps, c.name() + ": dgamma");
  expect_as_accurate(mine.grads[2], eager.grads[2], truth.grads[2], kEps, c.name() + ": dp_base");
}

TEST_F(GpuLearnableMask, PackedGradientsMatchTheReference) {
  const std::vector<MaskLength> masks = {{Kind::kFixed, 100},  {Kind::kFixed, 100, true},
                                         {Kind::kFixed, 257},  {Kind::kFixed, 512},
                                         {Kind::kSequence, 0}, {Kind::kInfinite, 0}};
  for (const bool alibi : {false, true}) {
    for (const MaskLength& mask : masks) {
      check_packed({257, 4, 4, 64, mask, alibi});
      check_packed({512, 6, 2, 64, mask, alibi});
      check_packed({130, 4, 1, 128, mask, alibi});
    }
  }
}

/// A mask can train alone, with every other parameter frozen.
TEST_F(GpuLearnableMask, MassHasAGradientWithoutOneOfTheProjection) {
  const Tensor packed = random({2, 96, 6, 64}, at::kBFloat16);
  const Tensor gamma = at::full({2}, 0.25, gpu(at::kFloat)), p_base = at::zeros_like(gamma);
  const auto gradients = [&](bool projection) {
    const Tensor x = packed.clone().requires_grad_(projection);
    const Tensor g = gamma.clone().requires_grad_(), p = p_base.clone().requires_grad_();
    AttentionOptions options;
    options.pseudo = PseudoScores{g, p, {Kind::kFixed, 90}};
    packed_attention(x, 2, 2, options).square().sum().backward();
    return std::vector<Tensor>{g.grad(), p.grad()};
  };
  const auto alone = gradients(false), together = gradients(true);
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(at::equal(alone[i], together[i]));
    EXPECT_GT(alone[i].abs().min().item<double>(), 0.0);
  }
}

}  // namespace
}  // namespace stablemask::ops
