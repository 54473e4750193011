#include "stablemask/ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/attention_cases.h"

namespace stablemask::ops {
namespace {

using testing::AttentionCase;
using testing::check_gradients;
using testing::compare_attention;
using testing::Mask;
using testing::normal;
using testing::relative_error;
using testing::special_cases;
using testing::square_cases;
using testing::Tensors;

const std::vector<AttentionBackend> kBackends = {AttentionBackend::kReference,
                                                 AttentionBackend::kFlash};

/// One row of the definition with explicit loops; pseudo slots from the diagonal to N−1.
at::Tensor literal_row(const AttentionCase& c, const Tensors& x, int64_t b, int64_t h, int64_t t) {
  const int64_t kv = h / (c.heads / c.kv_heads), i = c.offset + t;
  double denominator = 0;
  at::Tensor out = at::zeros({c.dims}, at::kDouble);
  for (int64_t j = 0; j <= i; ++j) {
    if (c.window > 0 && j <= i - c.window) continue;
    double score = at::dot(x[0][b][t][h], x[1][b][j][kv]).item<double>() / std::sqrt(c.dims);
    if (c.alibi) score -= alibi_slopes(c.heads)[h].item<double>() * static_cast<double>(i - j);
    denominator += std::exp(score);
    out += std::exp(score) * x[2][b][j][kv];
  }
  const double gamma = x[3][h].item<double>(), p_base = x[4][h].item<double>();
  for (int64_t j = i + 1; j < c.mask_length && c.mask == Mask::kFixed; ++j) {
    denominator += std::exp(p_base - gamma * static_cast<double>(j - i - 1));
  }
  return out / denominator;
}

TEST(AttentionReference, MatchesTheDefinitionTermByTerm) {
  for (const AttentionCase& c :
       {AttentionCase{.length = 6, .mask = Mask::kFixed, .mask_length = 5, .dims = 4},
        AttentionCase{
            .length = 6, .alibi = true, .mask = Mask::kFixed, .mask_length = 11, .dims = 4},
        AttentionCase{.length = 3, .alibi = true, .mask_length = 5, .offset = 3, .dims = 4},
        AttentionCase{
            .length = 6, .mask = Mask::kFixed, .mask_length = 7, .window = 2, .dims = 4}}) {
    const Tensors x = c.inputs();
    const at::Tensor out = c.plain()(x);
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t t = 0; t < c.length; ++t) {
          EXPECT_LT(relative_error(out[b][t][h], literal_row(c, x, b, h, t)), 1e-13) << c.name();
        }
      }
    }
  }
}

TEST(Attention, EveryBackendInFp32MatchesFp64) {
  for (const auto& cases : {square_cases(16), special_cases(16)}) {
    for (const AttentionCase& c : cases) compare_attention(c, kBackends, at::kFloat, 4e-6);
  }
}

TEST(Attention, EveryBackendInBf16IsAsAccurateAsEager) {
  for (const auto& cases : {square_cases(16), special_cases(16)}) {
    for (const AttentionCase& c : cases) compare_attention(c, kBackends, at::kBFloat16, 6e-3);
  }
}

TEST(Attention, GradientsEqualCentralDifferences) {
  for (const AttentionBackend backend : {AttentionBackend::kReference, AttentionBackend::kFlash}) {
    for (AttentionCase c : special_cases(4)) {
      if (c.heads > 4 || c.alibi != (c.window == 5)) continue;
      if (c.length == 37) c.length = 6;
      c.mask_length = std::min<int64_t>(c.mask_length, 5);
      SCOPED_TRACE(c.name());
      Tensors inputs = c.inputs();
      inputs[3] = inputs[3] + 0.25;  // keep away from the boundary γ = 0
      const auto op = c.op(backend);
      check_gradients([&](const Tensors& x) { return op(x) + 0.0 * (x[3].sum() + x[4].sum()); },
                      inputs, 1e-6);
    }
  }
}

TEST(Attention, AcceptsViewsOfAPackedProjection) {
  const at::Tensor packed = normal({2, 19, 8, 16}, 1, at::kFloat);
  const at::Tensor q = packed.narrow(2, 0, 4), k = packed.narrow(2, 4, 2),
                   v = packed.narrow(2, 6, 2);
  for (const AttentionBackend backend : kBackends) {
    AttentionOptions options;
    options.backend = backend;
    options.pseudo = PseudoScores{alibi_slopes(4), at::zeros({4}), {MaskLength::Kind::kFixed, 19}};
    const at::Tensor whole = attention(q.contiguous(), k.contiguous(), v.contiguous(), options);
    EXPECT_LT(relative_error(attention(q, k, v, options), whole), 1e-6);
  }
}

TEST(Attention, PackedDocumentsEqualSeparateSequences) {
  for (const Mask mask : {Mask::kCausal, Mask::kFixed, Mask::kInfinite, Mask::kBeyond}) {
    for (const AttentionBackend backend : kBackends) {
      const AttentionCase c{.length = 30, .alibi = true, .mask = mask, .documents = true};
      Tensors x = c.inputs();
      for (at::Tensor& tensor : x) tensor = tensor.to(at::kFloat);
      const at::Tensor together = c.op(backend)(x);
      const at::Tensor start = c.options(x).document_start;
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t begin = 0, end = 0; begin < 30; begin = end) {
          while (end < 30 && start[b][end].item<int64_t>() == begin) ++end;
          AttentionCase alone = c;
          alone.documents = false;
          const auto cut = [&](const at::Tensor& y) {
            return y.slice(0, b, b + 1).slice(1, begin, end);
          };
          const at::Tensor want = alone.op(backend)({cut(x[0]), cut(x[1]), cut(x[2]), x[3], x[4]});
          EXPECT_LT(relative_error(cut(together), want), 2e-6) << c.name();
        }
      }
    }
  }
}

TEST(Attention, RowsWithAKvCacheEqualTheFullForward) {
  for (const Mask mask : {Mask::kCausal, Mask::kFixed, Mask::kInfinite, Mask::kBeyond}) {
    for (const bool alibi : {false, true}) {
      for (const int64_t window : {0, 6}) {
        const AttentionCase c{.length = 29, .alibi = alibi, .mask = mask, .window = window};
        Tensors x = c.inputs();
        for (at::Tensor& tensor : x) tensor = tensor.to(at::kFloat);
        for (const AttentionBackend backend : kBackends) {
          const at::Tensor full = c.op(backend)(x);
          for (const auto& [begin, end] :
               {std::pair<int64_t, int64_t>{5, 6}, {5, 16}, {12, 13}, {28, 29}}) {
            AttentionCase tail = c;
            tail.offset = begin;
            const Tensors y = {x[0].slice(1, begin, end), x[1].slice(1, 0, end),
                               x[2].slice(1, 0, end), x[3], x[4]};
            EXPECT_LT(relative_error(tail.op(backend)(y), full.slice(1, begin, end)), 2e-6)
                << c.name() << " rows " << begin << " to " << end;
          }
        }
      }
    }
  }
}

/// With a window, keys that no row sees may be left out.
TEST(Attention, KeysOutsideEveryWindowMayBeDropped) {
  for (const Mask mask : {Mask::kCausal, Mask::kFixed, Mask::kBeyond}) {
    for (const bool alibi : {false, true}) {
      const AttentionCase c{.length = 29, .alibi = alibi, .mask = mask, .window = 6};
      Tensors x = c.inputs();
      for (at::Tensor& tensor : x) tensor = tensor.to(at::kFloat);
      for (const AttentionBackend backend : kBackends) {
        const at::Tensor full = c.op(backend)(x);
        for (const auto& [keys_begin, begin, end] : {std::tuple<int64_t, int64_t, int64_t>{0, 5, 6},
                                                     {5, 10, 16},
                                                     {2, 12, 13},
                                                     {23, 28, 29}}) {
          AttentionCase tail = c;
          tail.offset = begin;
          tail.key_offset = keys_begin;
          const Tensors y = {x[0].slice(1, begin, end), x[1].slice(1, keys_begin, end),
                             x[2].slice(1, keys_begin, end), x[3], x[4]};
          EXPECT_LT(relative_error(tail.op(backend)(y), full.slice(1, begin, end)), 2e-6)
              << c.name() << " rows " << begin << " to " << end;
        }
        AttentionCase blind = c;  // row 12 sees keys 7 to 12
        blind.offset = 12;
        blind.key_offset = 8;
        const Tensors y = {x[0].slice(1, 12, 13), x[1].slice(1, 8, 13), x[2].slice(1, 8, 13), x[3],
                           x[4]};
        EXPECT_THROW(blind.op(backend)(y), c10::Error);
      }
    }
  }
}

/// Rows up to N−1 do not change; rows from N on are those of an infinite mask length.
TEST(Attention, RowsBeyondTheMaskLengthHaveItsInfiniteMass) {
  for (const bool alibi : {false, true}) {
    for (const AttentionBackend backend : kBackends) {
      AttentionCase c{.length = 29, .alibi = alibi, .mask = Mask::kBeyond, .mask_length = 13};
      const Tensors x = c.inputs();
      const at::Tensor got = c.op(backend)(x);
      c.mask = Mask::kInfinite;
      EXPECT_LT(relative_error(got.slice(1, 13), c.op(backend)(x).slice(1, 13)), 1e-13);
      c.mask = Mask::kFixed;
      EXPECT_LT(relative_error(got.slice(1, 0, 13), c.op(backend)(x).slice(1, 0, 13)), 1e-13);
    }
  }
}

TEST(Attention, RightPaddingLeavesEarlierRowsUnchanged) {
  const AttentionCase c{.length = 29, .alibi = true, .mask = Mask::kFixed, .mask_length = 40};
  Tensors x = c.inputs();
  const at::Tensor full = c.op(AttentionBackend::kFlash)(x);
  for (const size_t i : {0, 1, 2}) x[i] = x[i].slice(1, 0, 11);
  EXPECT_LT(relative_error(c.op(AttentionBackend::kFlash)(x), full.slice(1, 0, 11)), 1e-13);
}

TEST(Attention, IdenticalTokensDifferOnlyByTheMaskRatio) {
  for (const bool alibi : {false, true}) {
    AttentionCase c{.length = 12, .alibi = alibi};
    Tensors x = c.inputs();
    for (const size_t i : {0, 1, 2}) x[i] = x[i].slice(1, 0, 1).expand(x[i].sizes()).contiguous();
    const at::Tensor plain = c.op(AttentionBackend::kFlash)(x);
    EXPECT_LT(relative_error(plain, plain.slice(1, 0, 1).expand(plain.sizes())), 1e-14);
    c.mask = Mask::kFixed;
    const at::Tensor masked = c.op(AttentionBackend::kFlash)(x);
    for (int64_t t = 1; t < 12; ++t) {
      EXPECT_GT(relative_error(masked.select(1, t), masked.select(1, t - 1)), 1e-3) << t;
    }
    const at::Tensor share = (masked / plain).select(3, 0);
    EXPECT_TRUE((share.slice(1, 1) > share.slice(1, 0, 11)).all().item<bool>());
  }
}

TEST(Attention, GivenLogMassIsBitwiseEqualAndDifferentiable) {
  const AttentionCase c{.length = 17, .mask = Mask::kFixed};
  Tensors x = c.inputs();
  for (at::Tensor& tensor : x) tensor = tensor.to(at::kFloat).requires_grad_();
  AttentionOptions options = c.options(x);
  const at::Tensor want = attention(x[0], x[1], x[2], options);
  options.log_mass = row_log_mass(options, 17).detach().requires_grad_();
  const at::Tensor got = attention(x[0], x[1], x[2], options);
  EXPECT_TRUE(at::equal(got, want));
  const at::Tensor direction = normal(got.sizes(), 5, at::kFloat);
  const at::Tensor dmass = torch::autograd::grad({got}, {options.log_mass}, {direction})[0];
  const at::Tensor chained =
      torch::autograd::grad({row_log_mass(c.options(x), 17)}, {x[4]}, {dmass})[0];
  const at::Tensor whole = torch::autograd::grad({want}, {x[4]}, {direction})[0];
  EXPECT_LT(relative_error(chained, whole), 1e-6);
}

TEST(Attention, InfiniteMassGivesZeroOutputAndGradients) {
  const AttentionCase c{.length = 9, .mask = Mask::kFixed, .mask_length = 9};
  Tensors x = c.inputs();
  for (at::Tensor& tensor : x) tensor = tensor.to(at::kFloat).requires_grad_();
  AttentionOptions options = c.options(x);
  const at::Tensor mass = log_pseudo_mass(*options.pseudo, 9).detach();
  mass.select(1, 4).fill_(std::numeric_limits<float>::infinity());
  options.log_mass = mass.requires_grad_();
  options.backend = AttentionBackend::kFlash;
  const at::Tensor out = attention(x[0], x[1], x[2], options);
  EXPECT_EQ(out.select(1, 4).count_nonzero().item<int64_t>(), 0);
  const Tensors grads =
      torch::autograd::grad({out}, {x[0], x[1], x[2], options.log_mass}, {at::ones_like(out)});
  for (const at::Tensor& grad : grads) EXPECT_TRUE(at::isfinite(grad).all().item<bool>());
  EXPECT_EQ(grads[0].select(1, 4).count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(grads[3].select(1, 4).count_nonzero().item<int64_t>(), 0);
  EXPECT_GT(grads[3].select(1, 3).abs().min().item<double>(), 0.0);
}

TEST(Attention, AutoSelectsFlashWhereSupported) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const AttentionCase c{.length = 17, .mask = Mask::kFixed};
    Tensors x = c.inputs();
    for (const size_t i : {0, 1, 2}) x[i] = x[i].to(type);
    const at::Tensor flash = c.op(AttentionBackend::kFlash)(x);
    EXPECT_TRUE(at::equal(c.op(AttentionBackend::kAuto)(x), flash));
    EXPECT_FALSE(at::equal(c.op(AttentionBackend::kReference)(x), flash));
  }
}

TEST(Attention, LseIsThatOfTheRealScores) {
  for (const AttentionCase& c : {AttentionCase{.length = 9, .mask = Mask::kFixed},
                                 {.length = 7, .alibi = true},
                                 {.length = 3, .mask = Mask::kInfinite, .offset = 4},
                                 {.length = 11, .window = 4}}) {
    SCOPED_TRACE(c.name());
    const Tensors x = c.inputs();
    AttentionOptions options = c.options(x);
    const int64_t keys = x[1].size(1);
    const at::Tensor q = x[0].transpose(1, 2);
    const at::Tensor k = x[1].transpose(1, 2).repeat_interleave(c.heads / c.kv_heads, 1);
    const at::Tensor i = at::arange(c.offset, keys).view({-1, 1}), j = at::arange(keys);
    at::Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(c.dims));
    if (c.alibi) scores = scores - alibi_slopes(c.heads).to(at::kDouble).view({-1, 1, 1}) * (i - j);
    at::Tensor hidden = j > i;
    if (c.window > 0) hidden = at::logical_or(hidden, j <= i - c.window);
    const at::Tensor want = at::logsumexp(scores.masked_fill(hidden, -INFINITY), -1);
    for (const AttentionBackend backend : kBackends) {
      options.backend = backend;
      const AttentionWithLse found = attention_with_lse(x[0], x[1], x[2], options);
      EXPECT_LT(relative_error(found.lse, want), 1e-12);
      EXPECT_TRUE(at::equal(found.out, attention(x[0], x[1], x[2], options)));
    }
  }
}

TEST(Attention, LseOfPackedDocumentsEqualsSeparateSequences) {
  const AttentionCase c{.length = 12, .mask = Mask::kFixed, .documents = true};
  const Tensors x = c.inputs();
  AttentionOptions options = c.options(x);
  options.backend = AttentionBackend::kReference;
  const at::Tensor want = attention_with_lse(x[0], x[1], x[2], options).lse;
  options.backend = AttentionBackend::kFlash;
  EXPECT_LT(relative_error(attention_with_lse(x[0], x[1], x[2], options).lse, want), 1e-12);
}

TEST(Attention, ThrowsForInvalidArguments) {
  const AttentionCase cached{.length = 3, .mask = Mask::kSequence, .offset = 2};
  EXPECT_THROW(cached.op(AttentionBackend::kAuto)(cached.inputs()), ConfigError);
  const AttentionCase packed{.length = 9, .mask = Mask::kSequence, .documents = true};
  EXPECT_THROW(packed.op(AttentionBackend::kAuto)(packed.inputs()), ConfigError);

  const AttentionCase c{.length = 5};
  Tensors x = c.inputs();
  AttentionOptions options;
  options.query_offset = 1;
  EXPECT_THROW(attention(x[0], x[1], x[2], options), c10::Error);
  options = {};
  EXPECT_THROW(attention(x[0], x[1], x[2].slice(1, 0, 4), options), c10::Error);
  EXPECT_THROW(attention(x[0].slice(2, 0, 3), x[1], x[2], options), c10::Error);
  EXPECT_THROW(attention(x[0].to(at::kFloat), x[1], x[2], options), c10::Error);
  options.alibi_slopes = alibi_slopes(3);
  EXPECT_THROW(attention(x[0], x[1], x[2], options), c10::Error);
  options = {};
  EXPECT_THROW(attention(x[0].slice(2, 0, 0), x[1], x[2], options), c10::Error);
  options.pseudo = PseudoScores{};  // no gamma, no p_base
  EXPECT_THROW(attention(x[0], x[1], x[2], options), c10::Error);
  options.pseudo = PseudoScores{at::ones({4}), at::zeros({4}), {MaskLength::Kind::kFixed, 0}};
  EXPECT_THROW(attention(x[0], x[1], x[2], options), c10::Error);
}

}  // namespace
}  // namespace stablemask::ops
