#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "src/ops/cuda/launchers.h"
#include "src/ops/kernels.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/gpu_errors.h"

namespace stablemask::ops {
namespace {

using namespace testing_gpu;
using at::Tensor;

constexpr std::array kTypes{at::kFloat, at::kBFloat16};

/// Gradients of Σ output·dout with respect to the inputs, computed by autograd.
template <typename F>
std::vector<Tensor> gradients(std::vector<Tensor> inputs, const Tensor& dout, const F& f) {
  for (Tensor& x : inputs) x = x.detach().clone().requires_grad_(true);
  const Tensor out = f(inputs);
  out.backward(dout.to(out.scalar_type()));
  std::vector<Tensor> grads;
  for (const Tensor& x : inputs) grads.push_back(x.grad());
  return grads;
}

struct NormCase {
  Tensor x, residual, weight, dy, dsum;
  NormCase(int64_t rows, int64_t cols, at::ScalarType type, at::ScalarType weight_type)
      : x(random({rows, cols}, type)),
        residual(random({rows, cols}, type, 2.0)),
        weight(random({cols}, weight_type)),
        dy(random({rows, cols}, type)),
        dsum(random({rows, cols}, type)) {}
};

constexpr double kEps = 1e-5;

void check_norm_forward(const NormCase& c, bool residual, const std::string& what) {
  const auto type = c.x.scalar_type();
  Tensor sum = poisoned(c.x.sizes(), type), y = poisoned(c.x.sizes(), type);
  Tensor rstd = poisoned({c.x.size(0)}, at::kFloat);
  cuda::rms_norm_forward(c.x, residual ? c.residual : Tensor(), c.weight, kEps, sum, y, rstd);
  const Tensor eager_sum = residual ? c.residual + c.x : c.x;
  if (residual) {
    EXPECT_TRUE(at::equal(sum, eager_sum)) << what;
  }
  const Tensor eager = reference::rms_norm(eager_sum, c.weight, kEps);
  expect_as_exact(y, eager, reference::rms_norm(wide(eager_sum), wide(c.weight), kEps), what);
  const Tensor true_rstd = at::rsqrt(wide(eager_sum).square().mean(1) + kEps);
  EXPECT_LE(error(rstd, true_rstd), 1e-6) << what;
}

void check_norm_backward(const NormCase& c, bool dsum, const std::string& what) {
  const auto f = [](const std::vector<Tensor>& in) {
    return reference::rms_norm(in[0], in[1], kEps);
  };
  const Tensor rstd = at::rsqrt(wide(c.x).square().mean(1) + kEps).to(at::kFloat);
  Tensor dx = poisoned(c.x.sizes(), c.x.scalar_type());
  const Tensor start = random(c.weight.sizes(), at::kFloat);
  Tensor dw = start.clone();
  cuda::rms_norm_backward(c.dy, dsum ? c.dsum : Tensor(), c.x, c.weight, rstd, dx, dw);

  const auto eager = gradients({c.x, c.weight.to(at::kFloat)}, c.dy, f);
  const auto truth = gradients({wide(c.x), wide(c.weight)}, wide(c.dy), f);
  const Tensor eager_dx = dsum ? eager[0] + c.dsum : eager[0];
  const Tensor true_dx = dsum ? truth[0] + wide(c.dsum) : truth[0];
  expect_as_exact(dx, eager_dx, true_dx, what + " dx");
  expect_as_exact(dw, start + eager[1], wide(start) + truth[1], what + " dw");

  Tensor again = dsum ? c.dsum.clone() : c.dy.clone(), dw_again = start.clone();
  cuda::rms_norm_backward(dsum ? c.dy : again, dsum ? again : Tensor(), c.x, c.weight, rstd, again,
                          dw_again);
  EXPECT_TRUE(at::equal(again, dx) && at::equal(dw_again, dw)) << what << " in place, again";
}

TEST_F(GpuTest, RmsNormIsAsAccurateAsEager) {
  const std::vector<std::array<int64_t, 2>> shapes = {
      {1, 1},     {3, 7},     {5, 64},    {131, 128}, {2, 127},  {33, 768}, {1025, 768}, {7, 1000},
      {65, 1024}, {4100, 96}, {17, 2048}, {3, 2051},  {2, 4096}, {3, 5120}, {2, 8191},   {5, 8192}};
  for (const auto type : kTypes) {
    for (const auto weight_type : {type, at::kFloat}) {
      for (const auto& [rows, cols] : shapes) {
        const NormCase c(rows, cols, type, weight_type);
        const std::string what = describe("rms_norm", {rows, cols}, type);
        for (const bool second : {false, true}) {
          check_norm_forward(c, second, what);
          // The gradient of a single column cancels up to eps: it is rounding error.
          if (cols > 1) check_norm_backward(c, second, what);
        }
      }
    }
  }
}

TEST_F(GpuTest, RmsNormOfUnalignedViewsIsAsAccurateAsEager) {
  for (const auto type : kTypes) {
    NormCase c(9, 256, type, type);
    c.weight = random({257}, type).narrow(0, 1, 256);
    c.x = random({9 * 256 + 1}, type).narrow(0, 1, 9 * 256).view({9, 256});
    check_norm_forward(c, true, "unaligned");
    check_norm_backward(c, true, "unaligned");
  }
}

TEST_F(GpuTest, SwigluIsAsAccurateAsEager) {
  const auto f = [](const std::vector<Tensor>& in) { return reference::swiglu(in[0]); };
  const std::vector<std::array<int64_t, 2>> shapes = {{1, 1},     {3, 5},      {2, 24},  {7, 1009},
                                                      {33, 2048}, {130, 1536}, {2, 5632}};
  for (const auto type : kTypes) {
    for (const auto& [rows, features] : shapes) {
      const std::string what = describe("swiglu", {rows, features}, type);
      const Tensor gate_up = random({rows, 2 * features}, type, 4.0);
      const Tensor dout = random({rows, features}, type);
      Tensor out = poisoned(dout.sizes(), type), dgate_up = poisoned(gate_up.sizes(), type);
      cuda::swiglu_forward(gate_up, out);
      expect_as_exact(out, f({gate_up}), f({wide(gate_up)}), what);
      cuda::swiglu_backward(dout, gate_up, dgate_up);
      expect_as_exact(dgate_up, gradients({gate_up}, dout, f)[0],
                      gradients({wide(gate_up)}, wide(dout), f)[0], what + " backward");
      Tensor in_place = gate_up.clone();
      cuda::swiglu_backward(dout, in_place, in_place);
      EXPECT_TRUE(at::equal(in_place, dgate_up)) << what << " in place";
    }
  }
}

struct RopeCase {
  int64_t batch, length, packed_heads, head_dim, heads, dims;
};

void check_rope(const RopeCase& c, bool per_row, at::ScalarType type) {
  const std::string what =
      describe("rope", {c.batch, c.length, c.packed_heads, c.head_dim, c.heads, c.dims}, type);
  const Tensor packed = random({c.batch, c.length, c.packed_heads, c.head_dim}, type);
  const Tensor table = rope_table(c.length + 5, c.dims, 10000.0).to(at::kCUDA);
  const Tensor positions = per_row ? at::randint(c.length + 5, {c.batch, c.length}, gpu(at::kLong))
                                   : at::arange(3, c.length + 3, gpu(at::kLong));
  Tensor out = packed.clone();
  cuda::rope_(out, c.heads, c.dims, positions, table, /*inverse=*/false);
  const Tensor eager = reference::rope(packed, c.heads, c.dims, positions, table);
  const Tensor truth = reference::rope(wide(packed), c.heads, c.dims, positions, wide(table));
  expect_as_exact(out, eager, truth, what);
  const int64_t kept = c.packed_heads - c.heads;
  EXPECT_TRUE(at::equal(out.narrow(2, c.heads, kept), packed.narrow(2, c.heads, kept))) << what;
  EXPECT_TRUE(at::equal(out.narrow(3, c.dims, c.head_dim - c.dims),
                        packed.narrow(3, c.dims, c.head_dim - c.dims)))
      << what;

  const auto f = [&](const std::vector<Tensor>& in) {
    return reference::rope(in[0], c.heads, c.dims, positions, table);
  };
  const Tensor dout = random(packed.sizes(), type);
  Tensor grad = dout.clone();
  cuda::rope_(grad, c.heads, c.dims, positions, table, /*inverse=*/true);
  expect_as_exact(grad, gradients({packed}, dout, f)[0],
                  gradients({wide(packed)}, wide(dout), f)[0], what + " backward");
}

TEST_F(GpuTest, RopeIsAsAccurateAsEager) {
  const std::vector<RopeCase> cases = {{1, 1, 1, 2, 1, 2},      {2, 7, 9, 64, 6, 64},
                                       {3, 17, 36, 64, 24, 64}, {1, 5, 3, 80, 2, 80},
                                       {2, 33, 5, 128, 4, 64},  {1, 127, 48, 128, 32, 128},
                                       {2, 3, 4, 256, 3, 256},  {1, 9, 7, 10, 5, 6},
                                       {2, 4, 3, 512, 2, 512},  {1, 6, 70, 16, 66, 16}};
  for (const auto type : kTypes) {
    for (const RopeCase& c : cases) {
      check_rope(c, false, type);
      check_rope(c, true, type);
    }
  }
}

struct LossCase {
  Tensor logits, targets;
  double scale, z_loss;
};

Tensor scale_of(double value) { return at::full({}, value, gpu(at::kDouble)); }

void check_cross_entropy(const LossCase& c, const std::string& what) {
  const auto f = [&](const std::vector<Tensor>& in) {
    return reference::cross_entropy(in[0], c.targets, c.z_loss);
  };
  const int64_t rows = c.logits.size(0);
  const Tensor dout = at::full({rows}, c.scale, gpu(at::kDouble));
  const Tensor truth = f({wide(c.logits)});
  Tensor logits = c.logits.clone(), losses = poisoned({rows}, at::kFloat);
  cuda::cross_entropy_(logits, c.targets, scale_of(c.scale), c.z_loss, /*grad=*/false, losses);
  EXPECT_TRUE(at::equal(logits, c.logits)) << what << ": logits changed without grad";
  expect_as_exact(losses, f({c.logits}), truth, what);
  losses.fill_(kNan);
  cuda::cross_entropy_(logits, c.targets, scale_of(c.scale), c.z_loss, /*grad=*/true, losses);
  expect_as_exact(losses, f({c.logits}), truth, what + " with grad");
  expect_as_exact(logits, gradients({c.logits}, dout, f)[0],
                  gradients({wide(c.logits)}, dout, f)[0], what + " gradient");
  Tensor again = c.logits.clone(), losses_again = poisoned({rows}, at::kFloat);
  cuda::cross_entropy_(again, c.targets, scale_of(c.scale), c.z_loss, /*grad=*/true, losses_again);
  EXPECT_TRUE(at::equal(again, logits) && at::equal(losses_again, losses)) << what << " again";
}

TEST_F(GpuTest, CrossEntropyIsAsAccurateAsEager) {
  for (const auto type : kTypes) {
    for (const int64_t vocab : {1, 2, 7, 8, 127, 1000, 4099, 32000, 50257, 50304, 130003}) {
      for (const double z_loss : {0.0, 1e-3}) {
        LossCase c{random({11, vocab}, type, 3.0), at::randint(vocab, {11}, gpu(at::kLong)), 0.37,
                   z_loss};
        c.targets[4] = -100;
        c.targets[0] = vocab - 1;
        check_cross_entropy(c, describe("cross_entropy", {11, vocab}, type));
      }
    }
  }
}

TEST_F(GpuTest, CrossEntropyOfMaskedAndExtremeLogits) {
  for (const auto type : kTypes) {
    for (const int64_t vocab : {13, 1024, 50257}) {
      LossCase c{random({6, vocab}, type), at::full({6}, 5, gpu(at::kLong)), 1.0, 1e-4};
      c.logits.narrow(1, 6, vocab - 6).narrow(0, 0, 2).fill_(-kInfinity);
      c.logits[2] += 3e4;
      c.logits[3] -= 3e4;
      c.logits[4][5] = 80.0;
      check_cross_entropy(c, describe("extreme cross_entropy", {6, vocab}, type));
      c.targets.fill_(-100);
      Tensor losses = poisoned({6}, at::kFloat);
      cuda::cross_entropy_(c.logits, c.targets, scale_of(1.0), 1e-4, /*grad=*/true, losses);
      EXPECT_EQ(losses.abs().max().item<float>(), 0.0f);
      EXPECT_EQ(c.logits.abs().max().item<float>(), 0.0f);
    }
  }
}

TEST_F(GpuTest, CrossEntropyOfInvalidLogitsOrTargetsIsNan) {
  for (const double bad : {kNan, kInfinity}) {
    Tensor logits = random({3, 50257}, at::kBFloat16), losses = poisoned({3}, at::kFloat);
    logits[1][40000] = bad;
    const Tensor targets = at::tensor({3, 4, 50257}, gpu(at::kLong));
    cuda::cross_entropy_(logits, targets, scale_of(1.0), 0.0, /*grad=*/true, losses);
    const Tensor expected = at::tensor({1, 0, 0}, at::kLong).to(at::kBool);
    EXPECT_TRUE(at::equal(at::isfinite(losses).cpu(), expected));
    EXPECT_TRUE(at::isnan(logits[1]).any().item<bool>());
    EXPECT_TRUE(at::isnan(logits[2]).all().item<bool>());
  }
}

struct CorrectionCase {
  Tensor out, lse, log_mass;  ///< [B,T,H,D], [B,H,T], broadcastable to [B,H,T]
};

/// Rows 0 and 2 of head 0 have no real mass; log S of the last rows is −inf.
CorrectionCase correction(int64_t batch, int64_t length, int64_t heads, int64_t dim, bool documents,
                          at::ScalarType type) {
  CorrectionCase c;
  c.out = random({batch, heads, length, dim}, type).transpose(1, 2);
  c.lse = random({batch, length, heads}, at::kFloat, 4.0).transpose(1, 2);
  c.log_mass = documents ? random({batch, heads, length}, at::kFloat, 4.0)
                         : random({heads, length}, at::kFloat, 4.0);
  c.log_mass.narrow(-1, length - length / 3, length / 3).fill_(-kInfinity);
  for (int64_t t = 0; t < std::min<int64_t>(length, 3); t += 2) {
    c.lse.select(1, 0).select(1, t).fill_(-kInfinity);
    c.out.select(2, 0).select(1, t).fill_(kNan);
  }
  return c;
}

void check_correction(const CorrectionCase& c, const std::string& what) {
  Tensor out = c.out, lse = c.lse;
  const Tensor empty_rows = at::isneginf(c.lse);
  const auto corrected = [&](at::ScalarType math) {
    const Tensor before = c.lse.to(math);
    const Tensor after = at::logaddexp(before, c.log_mass.to(math));
    const Tensor factor =
        at::where(empty_rows, 0.0, at::exp(before - after)).transpose(1, 2).unsqueeze(3);
    const Tensor scaled = at::where(factor > 0, c.out.to(math) * factor, 0.0);
    return std::pair(scaled, after);
  };
  const auto [truth, true_lse] = corrected(at::kDouble);
  const auto [eager, eager_lse] = corrected(at::kFloat);
  cuda::stable_mask_correct_(out, lse, c.log_mass);
  expect_as_exact(out, eager.to(c.out.scalar_type()), truth, what);
  const Tensor finite = at::isfinite(true_lse);
  EXPECT_TRUE(at::equal(finite, at::isfinite(lse))) << what;
  expect_as_exact(lse.masked_fill(~finite, 0), eager_lse.masked_fill(~finite, 0),
                  true_lse.masked_fill(~finite, 0), what + " lse");
}

TEST_F(GpuTest, StableMaskCorrectionIsAsAccurateAsEager) {
  const std::vector<std::array<int64_t, 4>> shapes = {
      {1, 1, 1, 1},    {2, 17, 3, 64}, {2, 127, 12, 64}, {1, 512, 16, 128},
      {3, 33, 17, 80}, {2, 5, 2, 7},   {1, 64, 33, 256}};
  for (const auto type : kTypes) {
    for (const auto& [batch, length, heads, dim] : shapes) {
      for (const bool documents : {false, true}) {
        const std::string what = describe("correction", {batch, length, heads, dim}, type);
        CorrectionCase c = correction(batch, length, heads, dim, documents, type);
        check_correction(c, what + " heads first");
        c = correction(batch, length, heads, dim, documents, type);
        c.out = c.out.contiguous();
        c.lse = c.lse.contiguous();
        check_correction(c, what + " contiguous");
        c = correction(batch, length, heads, dim, documents, type);
        const Tensor packed = poisoned({batch, length, 3 * heads, dim + 1}, type);
        c.out = packed.narrow(2, heads, heads).narrow(3, 1, dim).copy_(c.out);
        check_correction(c, what + " inside a packed, unaligned tensor");
      }
    }
  }
}

void check_embedding(const Tensor& ids, int64_t vocab, int64_t cols, at::ScalarType type) {
  const std::string what = describe("embedding", {ids.numel(), vocab, cols}, type);
  const Tensor dy = random({ids.numel(), cols}, type);
  const Tensor start = random({vocab, cols}, at::kFloat);
  Tensor dw = start.clone(), again = start.clone();
  cuda::embedding_backward(dy, ids, dw);
  cuda::embedding_backward(dy, ids, again);
  EXPECT_TRUE(at::equal(dw, again)) << what << " again";
  const Tensor eager = at::index_add(start, 0, ids, dy.to(at::kFloat));
  expect_as_exact(dw, eager, at::index_add(wide(start), 0, ids, wide(dy)), what);
}

TEST_F(GpuTest, EmbeddingBackwardIsAsAccurateAsEager) {
  for (const auto type : kTypes) {
    for (const int64_t tokens : {1, 2, 31, 32, 33, 64, 65, 257, 1000, 4099}) {
      for (const int64_t cols : {1, 7, 64, 768, 2056}) {
        const auto index = gpu(at::kLong);
        check_embedding(at::randint(50, {tokens}, index), 50, cols, type);
        check_embedding(at::randint(1000, {tokens}, index), 1000, cols, type);
        check_embedding(at::full({tokens}, 3, index), 5, cols, type);
        for (const int64_t run : {2, 40}) {
          check_embedding(at::arange(tokens, index).floor_divide(run), tokens, cols, type);
        }
      }
    }
  }
}

TEST_F(GpuTest, EmbeddingBackwardSkipsIdsOutsideTheVocabulary) {
  const Tensor dy = random({3, 8}, at::kBFloat16);
  Tensor dw = at::zeros({4, 8}, gpu(at::kFloat));
  cuda::embedding_backward(dy, at::tensor({-1, 2, 4}, gpu(at::kLong)), dw);
  EXPECT_TRUE(at::equal(dw[2], dy[1].to(at::kFloat)));
  EXPECT_EQ(dw.count_nonzero().item<int64_t>(), dw[2].count_nonzero().item<int64_t>());
}

struct AdamWState {
  Tensor weights, remainder, m, v, grad;

  Tensor joined() const {
    return remainder.defined() ? join_weights({weights, remainder}) : weights;
  }
};

/// For bf16: split weights.
AdamWState adamw_state(int64_t size, int64_t offset, at::ScalarType type) {
  const auto part = [&] { return random({size + offset}, at::kFloat).narrow(0, offset, size); };
  AdamWState s{part(), Tensor(), part(), part().square_(), part()};
  if (type == at::kFloat) return s;
  const SplitWeights split = split_weights(random({size + offset}, at::kFloat));
  s.weights = split.rounded.narrow(0, offset, size);
  s.remainder = split.remainder.narrow(0, offset, size);
  return s;
}

/// With unsplit weights.
AdamWState copy_of(const AdamWState& s, at::ScalarType type) {
  return {s.joined().to(type, false, true), Tensor(), s.m.to(type, false, true),
          s.v.to(type, false, true), s.grad.to(type, false, true)};
}

TEST_F(GpuTest, AdamWIsAsAccurateAsEager) {
  for (const auto type : kTypes) {
    for (const int64_t offset : {0, 1}) {
      for (const int64_t size : {1, 3, 4, 1023, 100003, 3000001}) {
        const std::string what = describe("adamw", {size, offset}, type);
        AdamWState kernel = adamw_state(size, offset, type);
        AdamWState eager = copy_of(kernel, at::kFloat), truth = copy_of(kernel, at::kDouble);
        for (const int64_t step : {1, 2, 1000}) {
          const AdamWArgs args{0.9, 0.95, 1e-8, 0.1};
          const Tensor control = update_control(3e-4, step, 0.7).to(at::kCUDA);
          for (AdamWState* s : {&eager, &truth}) {
            reference::adamw_(s->weights, s->remainder, s->m, s->v, s->grad, args, control);
          }
          cuda::adamw_(kernel.weights, kernel.remainder, kernel.m, kernel.v, kernel.grad, args,
                       control);
        }
        expect_as_exact(kernel.joined(), eager.weights, truth.weights, what);
        expect_as_exact(kernel.m, eager.m, truth.m, what + " m");
        expect_as_exact(kernel.v, eager.v, truth.v, what + " v");
        if (!kernel.remainder.defined()) continue;
        EXPECT_TRUE(at::equal(kernel.weights, split_weights(kernel.joined()).rounded)) << what;
      }
    }
  }
}

TEST_F(GpuTest, AdamWWithNegativeGradScaleChangesNothing) {
  AdamWState state = adamw_state(5003, 0, at::kBFloat16);
  const AdamWState before = copy_of(state, at::kFloat);
  const Tensor rounded = state.weights.clone();
  Tensor control = update_control(3e-4, 17).to(at::kCUDA);
  const Tensor nan = at::full({}, NAN, gpu(at::kFloat)), one = at::ones({}, gpu(at::kFloat));
  for (const auto& [loss, norm] : {std::pair{nan, one}, std::pair{one, nan}}) {
    set_grad_scale_(control, loss, norm, 1.0);
    cuda::adamw_(state.weights, state.remainder, state.m, state.v, state.grad,
                 {0.9, 0.95, 1e-8, 0.1}, control);
    EXPECT_TRUE(at::equal(state.joined(), before.weights) && at::equal(state.m, before.m));
    EXPECT_TRUE(at::equal(state.v, before.v) && at::equal(state.weights, rounded));
  }
  set_grad_scale_(control, one, one * 4, 1.0);
  EXPECT_EQ(control[2].item<double>(), 0.25);
}

TEST_F(GpuTest, SumOfSquaresMatchesFp64) {
  for (const int64_t size : {0, 1, 3, 5, 1021, 262144, 5000003}) {
    const Tensor x = random({size}, at::kFloat);
    const double truth = wide(x).square().sum().item<double>();
    const Tensor sum = cuda::sum_of_squares(x);
    EXPECT_EQ(sum.scalar_type(), at::kDouble);
    EXPECT_NEAR(sum.item<double>(), truth, 1e-13 * truth) << size;
    EXPECT_TRUE(at::equal(sum, cuda::sum_of_squares(x))) << size << " again";
    Tensor moved = at::empty({size + 1}, x.options()).narrow(0, 1, size);
    moved.copy_(x);
    EXPECT_TRUE(at::equal(sum, cuda::sum_of_squares(moved))) << size << " unaligned";
  }
  Tensor huge = at::full({100}, 1e30, gpu(at::kFloat));
  EXPECT_NEAR(cuda::sum_of_squares(huge).item<double>() / 1e62, 1.0, 1e-6);
}

TEST_F(GpuTest, KernelsThrowForInvalidTensors) {
  const Tensor x = random({4, 8}, at::kFloat);
  Tensor out = poisoned({4, 8}, at::kFloat), half = out.to(at::kHalf), turned = out.t();
  EXPECT_THROW(cuda::swiglu_forward(x, out), c10::Error);
  EXPECT_THROW(cuda::swiglu_forward(x.to(at::kHalf), half), c10::Error);
  Tensor lse = poisoned({1}, at::kFloat);
  EXPECT_THROW(
      cuda::cross_entropy_(turned, at::zeros({8}, gpu(at::kLong)), scale_of(1.0), 0, true, lse),
      c10::Error);
  EXPECT_THROW(
      cuda::cross_entropy_(out, at::zeros({4}, gpu(at::kLong)), scale_of(1.0), 0, true, lse),
      c10::Error);
  EXPECT_THROW(cuda::sum_of_squares(x.cpu()), c10::Error);
}

}  // namespace
}  // namespace stablemask::ops
