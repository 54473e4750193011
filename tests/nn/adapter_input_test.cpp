#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "stablemask/ops/adapter.h"
#include "tests/nn/adapter_cases.h"
#include "tests/ops/checks.h"

/// What products keep of their inputs for the backward.
namespace stablemask {
namespace {

using namespace testing_adapters;

/// Result and gradients of x and the factors with x = rms_norm(source) stated as such, or not.
Tensors with_norm(const FusedCase& c, bool stated, const ops::Dropout& dropout) {
  constexpr double kEps = 1e-5;
  Tensors leaves;
  for (const at::Tensor& input : c.inputs) leaves.push_back(input.to(at::kFloat));
  const at::Tensor source = leaves[0], norm = normal({source.size(-1)}, 11, at::kFloat);
  leaves[0] = ops::rms_norm(source, norm, kEps);
  for (at::Tensor& leaf : leaves) leaf.requires_grad_();
  const ops::Input input =
      stated ? ops::Input(leaves[0], source, norm, kEps) : ops::Input(leaves[0]);
  Tensors results = {c.of_input(input, leaves, dropout, ops::Kernels::kFused)};
  results[0].square().sum().backward();
  for (const at::Tensor& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

TEST(AdaptedInput, IsComputedAgainBitForBit) {
  for (const FusedCase& c : {linear_case(), rope_case(3, 7, 2, 4, 2), swiglu_case(3, 7, 5, 2)}) {
    for (const ops::Dropout& dropout : {ops::Dropout{}, half()}) {
      const Tensors expected = with_norm(c, false, dropout), got = with_norm(c, true, dropout);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(got[i].equal(expected[i])) << i;
    }
  }
}

/// The number of owners of x's memory after `op` of it, x itself left out.
template <class Op>
int64_t owners_after(const at::Tensor& value, const Op& op) {
  at::Tensor x = value.clone().requires_grad_();
  at::Tensor inner = x * 1;  // no leaf, as in a model
  const at::Storage storage = inner.storage();
  const at::Tensor out = op(inner);
  inner.reset();
  return static_cast<int64_t>(storage.use_count()) - 1;
}

TEST(AdaptedInput, IsNotKeptWhereItsSourceIs) {
  for (const FusedCase& c : {linear_case(), rope_case(3, 7, 2, 4, 2), swiglu_case(3, 7, 5, 2)}) {
    Tensors in;
    for (const at::Tensor& input : c.inputs) in.push_back(input.to(at::kFloat));
    for (size_t i = 1; i < in.size(); ++i) in[i].requires_grad_();
    const at::Tensor norm = at::ones({in[0].size(-1)}), source = in[0].clone();
    const auto run = [&](const ops::Input& x) {
      return c.of_input(x, in, {}, ops::Kernels::kFused);
    };
    EXPECT_GT(owners_after(in[0], [&](const at::Tensor& x) { return run(x); }), 0);
    EXPECT_EQ(owners_after(in[0],
                           [&](const at::Tensor& x) {
                             return run({x, source, norm, 1e-5});
                           }),
              0);
  }
}

TEST(AdaptedInput, OfAnotherShapeIsRefused) {
  const Tensors in = inputs();
  const ops::Input wrong(in[0], in[0].narrow(1, 0, 2), at::ones({7}, at::kDouble), 1e-5);
  ops::testing::refused("cannot be the norm of another shape",
                        [&] { ops::adapted_linear(wrong, in[1], adapter_of(in[2], in[3])); });
}

TEST(FrozenWeights, KeepNoInput) {
  const at::Tensor x = normal({2, 3, 8}, 1, at::kFloat), down = normal({8, 6}, 3, at::kFloat),
                   addend = at::zeros({2, 3, 12}), positions = at::arange(3, at::kLong);
  const ops::RopeInputs rope{4, positions, ops::rope_table(3, 4, 100.0)};
  using Op = std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>;
  for (const Op& op : std::vector<Op>{
           [](const auto&in, const auto&up) { return ops::linear(in, up); },
           [&](const auto&in, const auto&up) { return ops::linear_add(in, up, addend); },
           [&](const auto&in, const auto&up) { return ops::rope_linear(in, up, 3, 2, rope); },
           [&](const auto&in, const auto&up) {
             return ops::swiglu_feed_forward(in, up, down, x);
           }}) {
    Tensors grads;
    for (const bool frozen : {true, false}) {
      const at::Tensor up = normal({12, 8}, 2, at::kFloat).requires_grad_(!frozen);
      EXPECT_EQ(owners_after(x, [&](const at::Tensor& in) { return op(in, up); }) == 0, frozen);
      const at::Tensor in = x.clone().requires_grad_();
      op(in, up).square().sum().backward();
      grads.push_back(in.grad());
    }
    EXPECT_TRUE(grads[0].equal(grads[1]));
  }
}

}  // namespace
}  // namespace stablemask
