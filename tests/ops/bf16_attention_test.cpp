// packed_attention with Kernels::kFusedBf16 on the CPU: products of operands rounded to bf16.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "stablemask/ops/attention.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/attention_cases.h"

namespace stablemask::ops {
namespace {

using testing::AttentionCase;
using testing::evaluate;
using testing::Evaluation;
using testing::Mask;
using testing::normal;
using testing::relative_error;
using testing::Tensors;

#define SKIP_WITHOUT_INSTRUCTIONS() \
  if (!cpu_has_bf16()) GTEST_SKIP() << "this CPU has no instructions for bf16"

/// Packed projection, gamma and p_base, none exact in bf16.
Tensors packed_inputs(const AttentionCase& c) {
  const Tensors x = c.inputs();
  return {normal({2, c.length, c.heads + 2 * c.kv_heads, c.dims}, 11), x[3], x[4]};
}

testing::Function packed_op(const AttentionCase& c, Kernels kernels,
                            AttentionBackend backend = AttentionBackend::kAuto) {
  return [=](const Tensors& x) {
    AttentionOptions options = c.options({x[0], x[0], x[0], x[1], x[2]});
    options.kernels = kernels;
    options.backend = backend;
    const at::Tensor out = packed_attention(x[0], c.heads, c.kv_heads, options);
    return out + 0.0 * (x[1].sum() + x[2].sum()).to(out.scalar_type());
  };
}

at::Tensor direction_of(const AttentionCase& c) {
  return normal({2, c.length, c.heads, c.dims}, 12);
}

/// Half the distance of bf16 numbers next to 1: what rounding changes a number by, of its value.
constexpr double kRounding = 0x1p-9;

/// The formula in fp64 with bounds of what rounding the operands of every product to bf16 changes.
/// All tensors [B,H,T,…]; u is kRounding. With rounded q and k a score moves by at most ε_i = (2u +
/// u²)·max_j scale·Σ|q||k|, so a weight and its denominator by factors of at most exp(ε_i) each.
class RoundingBounds {
 public:
  RoundingBounds(const AttentionCase& c, const Tensors& x, const at::Tensor& direction)
      : c_(c), scale_(c.scale != 0.0 ? c.scale : 1.0 / std::sqrt(static_cast<double>(c.dims))) {
    const auto heads = [&](int64_t first, int64_t count) {
      return x[0].narrow(2, first, count).repeat_interleave(c.heads / count, 2).transpose(1, 2);
    };
    q = heads(0, c.heads);
    k = heads(c.heads, c.kv_heads);
    v = heads(c.heads + c.kv_heads, c.kv_heads);
    dout = direction.transpose(1, 2);
    weigh(c.options({x[0], x[0], x[0], x[1], x[2]}));
  }

  /// Of the output, and of the gradients of q, and of each query head's part of those of k and v.
  at::Tensor out, dq, dk, dv;

 private:
  void weigh(const AttentionOptions& options) {
    const at::Tensor j = at::arange(c_.length), i = j.unsqueeze(1);
    at::Tensor hidden = (j > i).expand({2, 1, c_.length, c_.length});
    if (c_.window > 0) hidden = at::logical_or(hidden, j <= i - c_.window);
    if (c_.documents) {
      hidden = at::logical_or(hidden, j < options.document_start.view({2, 1, c_.length, 1}));
    }
    at::Tensor scores = at::matmul(q, k.transpose(2, 3)) * scale_;
    if (c_.alibi) scores = scores - options.alibi_slopes.to(at::kDouble).view({-1, 1, 1}) * (i - j);
    scores = scores.masked_fill(hidden, -INFINITY);
    at::Tensor lse = scores.logsumexp(-1);
    if (options.pseudo) {
      lse = at::logaddexp(lse, row_log_mass(options, c_.length).to(at::kDouble));
    }
    const at::Tensor p = (scores - lse.unsqueeze(-1)).exp();
    const at::Tensor sizes = at::matmul(q.abs(), k.abs().transpose(2, 3)) * scale_;
    const at::Tensor moved = sizes.masked_fill(hidden, 0.0).amax(-1, true) * (2 * u_ + u_ * u_);
    differentiate(p, (2 * moved).exp() - 1 + kExact);
  }

  /// `r`: what a weight changes by, of its value, [B,H,T,1].
  void differentiate(const at::Tensor& p, const at::Tensor& r) {
    const double u = u_;
    out = (r * 1.0 + (1 + r) * (2 * u + u * u)) * at::matmul(p, v.abs());
    const at::Tensor value = at::matmul(p, v);
    const at::Tensor change = r + (1 + r) * (2 * u + u * u);
    dv = at::matmul((p * change).transpose(2, 3), dout.abs());
    const at::Tensor delta = (dout * value).sum(-1, true);
    const at::Tensor delta_error = (dout.abs() * (u * value.abs() + (1 + u) * out)).sum(-1, true);
    const at::Tensor dp = at::matmul(dout, v.transpose(2, 3));
    const at::Tensor dp_error =
        at::matmul(dout.abs(), v.abs().transpose(2, 3)) * (2 * u + u * u) + delta_error;
    const at::Tensor ds = (p * (dp - delta)).abs();
    const at::Tensor ds_error =
        ((1 + r) * p * dp_error + r * ds) * (1 + u) + (u + kExact) * ds + kExact * p;
    const auto product = [&](const at::Tensor& weights, const at::Tensor& errors,
                             const at::Tensor& factor) {
      return scale_ * at::matmul(errors * (1 + u) + weights * u, factor.abs());
    };
    dq = product(ds, ds_error, k);
    dk = product(ds.transpose(2, 3), ds_error.transpose(2, 3), q);
  }

  static constexpr double kExact = 2e-5;  ///< of the fp32 arithmetic and the exponentials
  static constexpr double u_ = kRounding;
  AttentionCase c_;
  double scale_;
  at::Tensor q, k, v, dout;
};

void expect_within(const at::Tensor& found, const at::Tensor& wanted, const at::Tensor& bound,
                   const std::string& what) {
  const at::Tensor error = (found.to(at::kDouble) - wanted).abs(), allowed = bound + 1e-6;
  EXPECT_TRUE((error <= allowed).all().item<bool>())
      << what << ": " << (error / allowed).max().item<double>() << " of the bound";
}

/// [B,H,T,D] of query heads summed over those that share a key head, [B,T,Hkv,D].
at::Tensor shared(const at::Tensor& x, int64_t kv_heads) {
  return x.view({2, kv_heads, -1, x.size(2), x.size(3)}).sum(2).transpose(1, 2);
}

void compare(const AttentionCase& c) {
  const Tensors x = packed_inputs(c);
  const at::Tensor direction = direction_of(c);
  const Evaluation exact = evaluate(packed_op(c, Kernels::kFused, AttentionBackend::kReference), x,
                                    direction, at::kDouble);
  const Evaluation found = evaluate(packed_op(c, Kernels::kFusedBf16), x, direction, at::kFloat);
  const RoundingBounds bounds(c, x, direction);
  expect_within(found.value, exact.value, bounds.out.transpose(1, 2), c.name() + ": output");
  expect_within(found.grads[0], exact.grads[0],
                at::cat({bounds.dq.transpose(1, 2), shared(bounds.dk, c.kv_heads),
                         shared(bounds.dv, c.kv_heads)},
                        2),
                c.name() + ": gradient");
  for (const size_t i : {1, 2}) {
    EXPECT_LT(relative_error(found.grads[i], exact.grads[i]), 0.03) << c.name() << ", input " << i;
  }
}

std::vector<AttentionCase> lengths_and_sizes() {
  std::vector<AttentionCase> cases;
  for (const int64_t length : {1, 2, 15, 16, 17, 33, 64, 65, 130, 257}) {
    for (const int64_t dims : {7, 16, 32}) {
      cases.push_back({.length = length,
                       .alibi = dims == 16,
                       .mask = Mask::kFixed,
                       .mask_length = length * 3 / 4 + 1,
                       .dims = dims});
    }
  }
  for (const int64_t dims : {1, 24, 64, 80, 96, 128, 130}) {
    cases.push_back({.length = 70, .mask = Mask::kFixed, .mask_length = 100, .dims = dims});
  }
  return cases;
}

TEST(Bf16Attention, IsWithinTheRoundingOfItsOperands) {
  SKIP_WITHOUT_INSTRUCTIONS();
  for (const AttentionCase& c : lengths_and_sizes()) compare(c);
}

TEST(Bf16Attention, TakesWindowsDocumentsAndSharedKeyHeads) {
  SKIP_WITHOUT_INSTRUCTIONS();
  for (const AttentionCase& c : testing::special_cases(16)) {
    if (c.offset == 0) compare(c);
  }
  for (const bool alibi : {false, true}) {
    AttentionCase c{.length = 200, .alibi = alibi, .mask = Mask::kBeyond, .mask_length = 90};
    for (const int64_t window : {1, 40, 64, 130}) compare(((c.window = window), c));
    compare(((c.documents = true), c));
    compare(((c.heads = 6), (c.kv_heads = 1), (c.documents = false), c));
  }
}

TEST(Bf16Attention, IsAsCloseAsLibTorchInBf16) {
  SKIP_WITHOUT_INSTRUCTIONS();
  for (const int64_t dims : {32, 64}) {
    const AttentionCase c{.length = 200, .kv_heads = 4, .dims = dims};
    const Tensors x = packed_inputs(c);
    const testing::Function library = [&](const Tensors& in) {
      const auto part = [&](int64_t n) { return in[0].narrow(2, 4 * n, 4).transpose(1, 2); };
      const at::Tensor out = at::scaled_dot_product_attention(part(0), part(1), part(2), {}, 0.0,
                                                              /*is_causal=*/true);
      return out.transpose(1, 2) + 0.0 * (in[1].sum() + in[2].sum());
    };
    const at::Tensor direction = direction_of(c);
    const Evaluation exact = evaluate(library, x, direction, at::kDouble);
    const Evaluation theirs = evaluate(library, x, direction, at::kBFloat16);
    const Evaluation ours = evaluate(packed_op(c, Kernels::kFusedBf16), x, direction, at::kFloat);
    EXPECT_LE(relative_error(ours.value, exact.value), relative_error(theirs.value, exact.value));
    for (int64_t n = 0; n < 3; ++n) {
      const auto part = [&](const Evaluation& e) { return e.grads[0].narrow(2, 4 * n, 4); };
      EXPECT_LE(relative_error(part(ours), part(exact)), relative_error(part(theirs), part(exact)))
          << "part " << n;
    }
  }
}

TEST(Bf16Attention, HasTheSameBitsWithAnyNumberOfThreads) {
  SKIP_WITHOUT_INSTRUCTIONS();
  const int before = at::get_num_threads();
  for (AttentionCase c : {AttentionCase{.length = 300, .mask = Mask::kFixed, .kv_heads = 1},
                          {.length = 130, .alibi = true, .mask = Mask::kFixed, .window = 70}}) {
    c.mask_length = 200;
    Tensors x = packed_inputs(c);
    x[0] = x[0].slice(0, 0, 1);
    const at::Tensor direction = direction_of(c).slice(0, 0, 1);
    at::set_num_threads(1);
    const Evaluation one = evaluate(packed_op(c, Kernels::kFusedBf16), x, direction, at::kFloat);
    for (const int threads : {2, 3, 7, 16}) {
      at::set_num_threads(threads);
      const Evaluation many = evaluate(packed_op(c, Kernels::kFusedBf16), x, direction, at::kFloat);
      EXPECT_TRUE(at::equal(many.value, one.value)) << threads;
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(many.grads[i], one.grads[i])) << threads;
    }
  }
  at::set_num_threads(before);
}

TEST(Bf16Attention, InfiniteMassGivesZeroOutputAndGradients) {
  SKIP_WITHOUT_INSTRUCTIONS();
  const AttentionCase c{.length = 40, .mask = Mask::kFixed, .mask_length = 40};
  Tensors x = packed_inputs(c);
  for (at::Tensor& tensor : x) tensor = tensor.to(at::kFloat).requires_grad_();
  AttentionOptions options = c.options({x[0], x[0], x[0], x[1], x[2]});
  options.kernels = Kernels::kFusedBf16;
  const at::Tensor mass = row_log_mass(options, 40).detach();
  mass.select(1, 4).fill_(std::numeric_limits<float>::infinity());
  mass.select(1, 5).fill_(200.0f);  // e^200 is no fp32 number
  options.log_mass = mass.requires_grad_();
  const at::Tensor out = packed_attention(x[0], c.heads, c.kv_heads, options);
  EXPECT_EQ(out.slice(1, 4, 6).count_nonzero().item<int64_t>(), 0);
  EXPECT_GT(out.select(1, 6).abs().min().item<double>(), 0.0);
  const Tensors grads =
      torch::autograd::grad({out}, {x[0], options.log_mass}, {at::ones_like(out)});
  for (const at::Tensor& grad : grads) EXPECT_TRUE(at::isfinite(grad).all().item<bool>());
  EXPECT_EQ(grads[0].select(1, 4).narrow(1, 0, 4).count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(grads[1].select(1, 4).count_nonzero().item<int64_t>(), 0);
}

TEST(Bf16Attention, LargeScoresAndInvalidNumbersStayWhereTheyAre) {
  SKIP_WITHOUT_INSTRUCTIONS();
  const AttentionCase c{.length = 20, .heads = 1, .kv_heads = 1};
  const auto run = [&](const at::Tensor& packed) {
    AttentionOptions options;
    options.kernels = Kernels::kFusedBf16;
    return packed_attention(packed, 1, 1, options);
  };
  at::Tensor packed = normal({1, c.length, 3, 16}, 1, at::kFloat);
  packed.slice(2, 0, 2).mul_(1e3);  // each row has one weight that is not 0
  const at::Tensor want = [&] {
    const auto rounded = packed.to(at::kBFloat16).to(at::kDouble);
    const auto [q, k, v] = split_heads(rounded, 1, 1);
    return reference::attention(q, k, v, {});
  }();
  EXPECT_LT(relative_error(run(packed), want), 1e-6);
  packed[0][7][1].fill_(std::nan(""));
  const at::Tensor found = run(packed).isnan();
  EXPECT_FALSE(found.slice(1, 0, 7).any().item<bool>());
  EXPECT_TRUE(found.slice(1, 7).all().item<bool>());
}

/// Elsewhere the option changes nothing.
TEST(Bf16Attention, IsForFp32AndNotForTheReference) {
  const AttentionCase c{.length = 33, .mask = Mask::kFixed};
  const Tensors x = packed_inputs(c);
  const auto value = [&](at::ScalarType type, Kernels kernels, AttentionBackend backend) {
    return evaluate(packed_op(c, kernels, backend), x, direction_of(c), type).value;
  };
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const auto backend : {AttentionBackend::kAuto, AttentionBackend::kReference}) {
      const bool rounds =
          type == at::kFloat && backend == AttentionBackend::kAuto && cpu_has_bf16();
      EXPECT_EQ(at::equal(value(type, Kernels::kFused, backend),
                          value(type, Kernels::kFusedBf16, backend)),
                !rounds);
    }
  }
}

}  // namespace
}  // namespace stablemask::ops
