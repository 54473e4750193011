#include "stablemask/ops/functional.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "src/ops/cpu_few_rows.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/functional_cases.h"

namespace stablemask::ops {
namespace {

using testing::Case;
using testing::check_gradients;
using testing::compare;
using testing::evaluate;
using testing::Evaluation;
using testing::integers;
using testing::large_cases;
using testing::normal;
using testing::relative_error;
using testing::small_cases;
using testing::Tensors;

TEST(Functional, GradientsEqualCentralDifferences) {
  for (const Case& c : small_cases()) {
    SCOPED_TRACE(c.name);
    check_gradients(c.op, c.inputs);
  }
}

TEST(Functional, Fp32KernelsAreAsAccurateAsTheFormula) {
  for (const auto& cases : {small_cases(), large_cases()}) {
    for (const Case& c : cases) compare(c, at::kFloat, 3e-7, at::kCPU);
  }
}

TEST(Functional, Bf16IsAsAccurateAsTheFormula) {
  for (const Case& c : large_cases()) compare(c, at::kBFloat16, 4e-3, at::kCPU);
}

TEST(Functional, ReferenceEqualsTheFormula) {
  const at::Tensor x = normal({5, 8}, 1), w = normal({8}, 2), b = normal({8}, 3);

  EXPECT_LT(relative_error(reference::layer_norm(x, w, b, 1e-5), ops::layer_norm(x, w, b, 1e-5)),
            1e-14);
  const at::Tensor logits = normal({5, 11}, 4), targets = integers(11, {5}, 5);
  const at::Tensor want = -at::log_softmax(logits, 1).gather(1, targets.unsqueeze(1)).squeeze(1);
  EXPECT_LT(relative_error(reference::cross_entropy(logits, targets), want), 1e-14);
}

/// Expects two evaluations to be bitwise equal.
void expect_same_bits(const Evaluation& a, const Evaluation& b) {
  EXPECT_TRUE(at::equal(a.value, b.value));
  for (size_t i = 0; i < a.grads.size(); ++i) {
    if (!a.grads[i].defined()) continue;
    EXPECT_TRUE(at::equal(a.grads[i], b.grads[i])) << "gradient " << i;
  }
}

/// Whether the op multiplies by a weight; the BLAS library may not be reproducible.
bool multiplies(const Case& c) {
  for (const char* name : {"linear", "swiglu_feed_forward"}) {
    if (c.name.find(name) != std::string::npos) return true;
  }
  return false;
}

TEST(Functional, ProductsOfFewRowsOnTheCpu) {
  for (const int64_t in : {1, 31, 64, 515}) {
    const at::Tensor weight = normal({70, in}, 1, at::kFloat);
    const at::Tensor all = normal({8, in}, 2, at::kFloat), more = normal({8, 70}, 3, at::kFloat);
    for (const int64_t rows : {1, 3, 4, 8}) {
      const at::Tensor x = all.narrow(0, 0, rows), residual = more.narrow(0, 0, rows);
      ASSERT_TRUE(cpu::few_rows_serves(x, weight));
      at::Tensor plain = at::empty({rows, 70}), added = at::empty({rows, 70});
      cpu::few_rows_product(x, weight, {}, plain);
      cpu::few_rows_product(x, weight, residual, added);
      const at::Tensor want = at::mm(x.to(at::kDouble), weight.to(at::kDouble).t());
      EXPECT_LT(relative_error(plain, want), 3e-7) << rows << " x " << in;
      EXPECT_TRUE(at::equal(added, residual + plain)) << rows << " x " << in;
      // Each row alone.
      for (int64_t row = 0; row < rows; ++row) {
        at::Tensor alone = at::empty({1, 70});
        cpu::few_rows_product(x.narrow(0, row, 1), weight, {}, alone);
        EXPECT_TRUE(at::equal(alone[0], plain[row])) << row << " of " << rows << " x " << in;
      }
    }
  }
  const at::Tensor weight = normal({70, 16}, 1, at::kFloat);
  EXPECT_FALSE(cpu::few_rows_serves(normal({9, 16}, 2, at::kFloat), weight));
  EXPECT_FALSE(cpu::few_rows_serves(normal({2, 16}, 2), weight));
  EXPECT_FALSE(cpu::few_rows_serves(normal({2, 70}, 2, at::kFloat), weight.t()));
}

TEST(Functional, FewRowsWithoutGradientsOnTheCpuAreAsAccurate) {
  const at::NoGradGuard no_grad;
  const auto single = [](const at::Tensor& x) { return x.to(at::kFloat); };
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{1, 61}, {2, 3, 61}, {8, 61}}) {
    const at::Tensor x = normal(shape, 1), weight = normal({53, 61}, 2);
    const at::Tensor product = at::matmul(x, weight.t()), residual = normal(product.sizes(), 3);
    const at::Tensor up = normal({2 * 53, 61}, 4), down = normal({61, 53}, 5);
    const at::Tensor hidden = reference::swiglu(at::matmul(x, up.t()));
    EXPECT_LT(relative_error(ops::linear(single(x), single(weight)), product), 3e-7);
    EXPECT_LT(
        relative_error(linear_add(single(x), single(weight), single(residual)), residual + product),
        3e-7);
    EXPECT_LT(relative_error(swiglu_feed_forward(single(x), single(up), single(down), single(x)),
                             x + at::matmul(hidden, down.t())),
              1e-6);
  }
}

TEST(Functional, BitwiseReproducibleAtAnyThreadCount) {
  const int threads = at::get_num_threads();
  for (const Case& c : large_cases()) {
    if (multiplies(c) || c.name == "layer_norm") continue;
    SCOPED_TRACE(c.name);
    const at::Tensor direction = normal(c.formula(c.inputs).sizes(), 7);
    at::set_num_threads(1);
    const Evaluation alone = evaluate(c.op, c.inputs, direction, at::kFloat);
    at::set_num_threads(2);
    expect_same_bits(evaluate(c.op, c.inputs, direction, at::kFloat), alone);
    at::set_num_threads(threads);
  }
}

TEST(Functional, WeightGradientsAccumulateIntoADefinedGrad) {
  for (const Case& c : large_cases()) {
    for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
      SCOPED_TRACE(c.name + " " + at::toString(type));
      const at::Tensor direction = normal(c.formula(c.inputs).sizes(), 7);
      const Evaluation want = evaluate(c.op, c.inputs, direction, type);
      const at::ScalarType wide = type == at::kDouble ? at::kDouble : at::kFloat;
      Tensors leaves, buffers;
      for (const at::Tensor& x : c.inputs) {
        leaves.push_back(x.is_floating_point() ? x.detach().to(type).requires_grad_() : x);
        buffers.push_back(x.is_floating_point() ? at::ones(x.sizes(), wide) : at::Tensor());
        if (buffers.back().defined()) leaves.back().mutable_grad() = buffers.back();
      }
      const at::Tensor value = c.op(leaves);
      for (int repeat = 0; repeat < 2; ++repeat) {
        value.backward(direction.to(value.scalar_type()), /*retain_graph=*/true);
      }
      for (size_t i = 0; i < leaves.size(); ++i) {
        if (!buffers[i].defined()) continue;
        EXPECT_TRUE(leaves[i].grad().is_same(buffers[i])) << "input " << i;
        const double tolerance = type == at::kBFloat16 ? 1e-2 : 1e-6;
        EXPECT_LT(relative_error((buffers[i] - 1) / 2, want.grads[i]), tolerance) << "input " << i;
      }
    }
  }
}

/// Two micro-batches of a model with an embedding, a projection and a head; gradients of the three.
Tensors step_gradients(at::ScalarType type, bool tied, bool step, double start) {
  const Tensors weights = {normal({11, 6}, 1), normal({6, 6}, 2), normal({11, 6}, 3)};
  Tensors leaves;
  for (const at::Tensor& weight : weights) {
    leaves.push_back(weight.to(type).requires_grad_());
    const at::ScalarType wide = type == at::kDouble ? at::kDouble : at::kFloat;
    // Buffers that are accumulated into must be zero; overwritten ones may hold anything.
    const bool overwritten = &weight != &weights[0] || tied;
    leaves.back().mutable_grad() = at::full(weight.sizes(), overwritten ? start : 0.0, wide);
  }
  const Weight table = Weight::tracked(leaves[0]), hidden = Weight::tracked(leaves[1]);
  const Weight head = tied ? table : Weight::tracked(leaves[2]);
  const std::vector<Weight> multiplied = {hidden, head};
  const at::Tensor scale = at::full({}, 0.3, at::kDouble);
  if (step) {
    for (const Weight& weight : multiplied) weight.begin_gradient();
  }
  for (const uint64_t micro_batch : {0, 1}) {
    const at::Tensor ids = integers(11, {9}, 4 + micro_batch), next = integers(11, {9}, 6);
    const at::Tensor x = ops::linear(ops::embedding(ids, table), hidden);
    linear_cross_entropy(x, head, next, scale, 0.0,
                         step ? HeadGradient::kInForward : HeadGradient::kInBackward)
        .backward();
  }
  for (const Weight& weight : multiplied) weight.finish_gradient();
  return {leaves[0].grad(), leaves[1].grad(), head.tensor().grad()};
}

TEST(Functional, GradientsOfAStepOverwriteStaleBuffers) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const bool tied : {false, true}) {
      const Tensors want = step_gradients(type, tied, false, 0.0);
      const Tensors got =
          step_gradients(type, tied, true, std::numeric_limits<double>::quiet_NaN());
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_LT(relative_error(got[i], want[i]), 1e-6)
            << "weight " << i << ", tied " << tied << " " << type;
      }
    }
  }
}

TEST(Functional, GradientsOfAStepWithoutRowsAreZero) {
  const at::Tensor weight = normal({7, 3}, 1, at::kFloat).requires_grad_();
  weight.mutable_grad() = at::full({7, 3}, 5.0, at::kFloat);
  const Weight tracked = Weight::tracked(weight);
  tracked.begin_gradient();
  const at::Tensor x = at::zeros({0, 3}, at::kFloat).requires_grad_();
  linear_cross_entropy(x, tracked, at::zeros({0}, at::kLong), at::ones({}, at::kDouble), 0.0,
                       HeadGradient::kInForward)
      .backward();
  EXPECT_EQ(weight.grad().abs().sum().item<float>(), 0.0f);
}

/// Gradient of a weight [5,5] used by `uses` linear ops of one forward, starting from a stale
/// buffer.
at::Tensor gradient_of_uses(int uses) {
  const at::Tensor weight = normal({5, 5}, 1, at::kFloat).requires_grad_();
  weight.mutable_grad() = at::full({5, 5}, std::numeric_limits<double>::quiet_NaN(), at::kFloat);
  const Weight tracked = Weight::tracked(weight);
  tracked.begin_gradient();
  at::Tensor x = normal({3, 5}, 2, at::kFloat).requires_grad_();
  for (int i = 0; i < uses; ++i) x = ops::linear(x, tracked);
  x.square().sum().backward();
  tracked.finish_gradient();
  return weight.grad();
}

TEST(Functional, WeightUsedTwiceInAStepSumsBothGradients) {
  const at::Tensor weight = normal({5, 5}, 1, at::kFloat).requires_grad_();
  const at::Tensor x = normal({3, 5}, 2, at::kFloat);
  at::mm(at::mm(x, weight.t()), weight.t()).square().sum().backward();
  EXPECT_LT(relative_error(gradient_of_uses(2), weight.grad()), 1e-6);
}

TEST(Functional, WeightUnusedInAStepHasZeroGradient) {
  EXPECT_TRUE(gradient_of_uses(0).equal(at::zeros({5, 5}, at::kFloat)));
}

TEST(Functional, TrackedWeightOutsideAStepAccumulates) {
  const at::Tensor weight = normal({5, 5}, 1, at::kFloat).requires_grad_();
  const Weight tracked = Weight::tracked(weight);
  const at::Tensor x = normal({3, 5}, 2, at::kFloat);
  ops::linear(x, tracked).sum().backward();
  const at::Tensor once = weight.grad().clone();
  ops::linear(x, tracked).sum().backward();
  EXPECT_LT(relative_error(weight.grad(), 2 * once), 1e-6);
}

TEST(Functional, FrozenWeightsAndInputsGetNoGradient) {
  const at::Tensor x = normal({4, 6}, 1, at::kFloat).requires_grad_();
  const at::Tensor weight = normal({5, 6}, 2, at::kFloat), targets = integers(5, {4}, 3);
  ops::linear(x, weight).sum().backward();
  linear_cross_entropy(x, weight, targets, 1.0).backward();
  rms_norm(x, normal({6}, 4, at::kFloat), 1e-5).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(weight.grad().defined());
  const at::Tensor trained = weight.clone().requires_grad_();
  linear_cross_entropy(x.detach(), trained, targets, 1.0).backward();
  EXPECT_TRUE(trained.grad().defined());
}

TEST(Functional, AddRmsNormBackwardWithOneUsedOutput) {
  const Tensors inputs = {normal({3, 5}, 1), normal({3, 5}, 2), normal({5}, 3)};
  for (const int output : {0, 1}) {
    const auto pick = [output](const auto& both) {
      return output == 0 ? std::get<0>(both) : std::get<1>(both);
    };
    const at::Tensor direction = normal({3, 5}, 4);
    Tensors leaves;
    for (const at::Tensor& x : inputs) leaves.push_back(x.to(at::kFloat).requires_grad_());
    const at::Tensor got = pick(add_rms_norm(leaves[0], leaves[1], leaves[2], 1e-5));
    got.backward(direction.to(at::kFloat));
    Tensors exact;
    for (const at::Tensor& x : inputs) exact.push_back(x.clone().requires_grad_());
    pick(reference::add_rms_norm(exact[0], exact[1], exact[2], 1e-5)).backward(direction);
    for (const size_t i : {0, 1}) {
      EXPECT_LT(relative_error(leaves[i].grad(), exact[i].grad()), 1e-6);
    }
  }
}

TEST(Functional, RmsNormBranchBackwardWithOneUsedOutput) {
  for (const int output : {0, 1}) {
    const at::Tensor x = normal({3, 5}, 1), weight = normal({5}, 2), direction = normal({3, 5}, 3);
    const at::Tensor leaf = x.to(at::kFloat).requires_grad_(), exact = x.clone().requires_grad_();
    const auto [through, normed] = rms_norm_branch(leaf, weight.to(at::kFloat), 1e-5);
    (output == 0 ? through : normed).backward(direction.to(at::kFloat));
    (output == 0 ? exact * 1 : reference::rms_norm(exact, weight, 1e-5)).backward(direction);
    EXPECT_LT(relative_error(leaf.grad(), exact.grad()), 1e-6);
  }
}

TEST(Functional, RopeModifiesNeitherInputNorIncomingGradient) {
  const at::Tensor packed = normal({1, 3, 4, 8}, 1, at::kFloat).requires_grad_();
  const at::Tensor before = packed.detach().clone(), grad = normal({1, 3, 4, 8}, 2, at::kFloat);
  const at::Tensor grad_before = grad.clone();
  ops::rope(packed, 3, 8, at::arange(3, at::kLong), rope_table(3, 8, 1e4)).backward(grad);
  EXPECT_TRUE(at::equal(packed.detach(), before));
  EXPECT_TRUE(at::equal(grad, grad_before));
}

TEST(Functional, RopeTableIsAccurateAtLargePositions) {
  const at::Tensor table = rope_table(100001, 64, 1e4);
  EXPECT_NEAR(table[100000][0].item<double>(), std::cos(100000.0), 1e-7);
  const double angle = 100000.0 * std::pow(1e4, -2.0 * 5 / 64);
  EXPECT_NEAR(table[100000][37].item<double>(), std::sin(angle), 1e-7);
}

TEST(Functional, LinearNllIsTheLossOfEachRow) {
  const at::Tensor x = normal({337, 37}, 1), weight = normal({1009, 37}, 2);
  const at::Tensor targets = integers(1009, {337}, 3);
  targets[5] = -100;
  const at::Tensor want = reference::cross_entropy(at::matmul(x, weight.t()), targets);
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor got = linear_nll(x.to(type), weight.to(type).requires_grad_(), targets);
    EXPECT_EQ(got.scalar_type(), at::kFloat);
    EXPECT_FALSE(got.requires_grad());
    EXPECT_LT(relative_error(got, want), 1e-6);
    EXPECT_EQ(got[5].item<float>(), 0.0f);
  }
}

TEST(Functional, CrossEntropyOfNonFiniteLogitsIsNonFinite) {
  const at::Tensor weight = normal({7, 3}, 1, at::kFloat), targets = integers(7, {2}, 2);
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const at::Tensor x = at::full({2, 3}, bad, at::kFloat).requires_grad_();
    const at::Tensor loss = linear_cross_entropy(x, weight, targets, 1.0);
    EXPECT_FALSE(std::isfinite(loss.item<float>()));
  }
}

TEST(Functional, CrossEntropyOfExtremeLogitsIsExact) {
  const at::Tensor x = at::tensor({1e4, -1e4}, at::kFloat).view({2, 1}).requires_grad_();
  const at::Tensor weight = at::tensor({1.0, 0.0, -1.0}, at::kFloat).view({3, 1});
  const at::Tensor targets = at::tensor({0, 0}, at::kLong);
  const at::Tensor loss = linear_cross_entropy(x, weight, targets, 1.0);
  EXPECT_EQ(loss.item<float>(), 2e4f);
  loss.backward();
  EXPECT_EQ(x.grad()[0].item<float>(), 0.0f);
  EXPECT_EQ(x.grad()[1].item<float>(), -2.0f);
}

TEST(Functional, ThrowsForInconsistentShapes) {
  const at::Tensor x = normal({4, 6}, 1, at::kFloat);
  EXPECT_THROW(ops::linear(x, normal({5, 7}, 2, at::kFloat)), c10::Error);
  EXPECT_THROW(ops::rms_norm(x, normal({5}, 2, at::kFloat), 1e-5), c10::Error);
  EXPECT_THROW(ops::swiglu(normal({4, 5}, 1, at::kFloat)), c10::Error);
  const at::Tensor square = normal({6, 6}, 2, at::kFloat);
  EXPECT_THROW(linear_add(x, square, normal({4, 5}, 3, at::kFloat)), c10::Error);
  EXPECT_THROW(swiglu_feed_forward(x, normal({10, 6}, 2, at::kFloat), square, x), c10::Error);
  const RopeInputs rope{6, at::arange(4, at::kLong), rope_table(4, 6, 1e4)};
  EXPECT_THROW(rope_linear(x.view({1, 4, 6}), square, 4, 1, rope), c10::Error);
  EXPECT_THROW(rope_linear(x.view({1, 4, 6}), square, 1, 2, rope), c10::Error);
  EXPECT_THROW(split_heads(x.view({1, 1, 4, 6}), 3, 1), c10::Error);
  EXPECT_THROW(ops::rope(x.view({1, 1, 4, 6}), 5, 6, at::arange(1), rope_table(4, 6, 1e4)),
               c10::Error);
  const at::Tensor far = at::full({1}, 4, at::kLong);
  EXPECT_THROW(ops::rope(x.view({1, 1, 4, 6}), 4, 6, far, rope_table(4, 6, 1e4)), c10::Error);
  const at::Tensor targets = at::full({4}, 9, at::kLong);
  EXPECT_THROW(linear_nll(x, normal({9, 6}, 2, at::kFloat), targets), c10::Error);
}

}  // namespace
}  // namespace stablemask::ops
