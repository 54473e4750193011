#include "stablemask/ops/adapter.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>

#include "stablemask/nn/model.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/optimizer.h"
#include "stablemask/optim/flat_parameters.h"
#include "tests/nn/adapter_cases.h"
#include "tests/nn/models.h"
#include "tests/ops/checks.h"

namespace stablemask {
namespace {

using namespace testing_adapters;
using ops::testing::check_gradients;
using ops::testing::normal;
using ops::testing::relative_error;
using ops::testing::Tensors;
using testing_models::max_difference;
using testing_models::tiny_config;
using testing_models::tiny_model;
using testing_models::tokens;

TEST(AdaptedLinear, EqualsTheProductWithTheMergedWeight) {
  const Tensors in = inputs();
  const at::Tensor expected =
      at::matmul(in[0], merged(in[1], in[2], in[3], kRows, kScale).t()) + in[4];
  const ops::Adapter adapter = adapter_of(in[2], in[3]);
  EXPECT_LE(max_difference(ops::adapted_linear(in[0], in[1], adapter, {}, in[4]), expected), 1e-12);
  EXPECT_LE(max_difference(ops::adapted_linear(in[0], in[1], adapter), expected - in[4]), 1e-12);
}

TEST(AdaptedLinear, GradientsAreCentralDifferences) {
  const Tensors in = inputs();
  const at::Tensor weight = in[1];
  for (const ops::Dropout& dropout : {ops::Dropout{}, half()}) {
    check_gradients(
        [&](const Tensors& x) {
          return ops::adapted_linear(x[0], weight, adapter_of(x[1], x[2]), dropout, x[3]);
        },
        {in[0], in[2], in[3], in[4]});
  }
}

TEST(AdaptedLinear, AccumulatesIntoGradientBuffers) {
  const Tensors in = inputs();
  Tensors expected;
  for (const bool buffers : {false, true}) {
    at::Tensor a = in[2].to(at::kFloat).requires_grad_(), b = in[3].to(at::kFloat).requires_grad_();
    ops::Adapter adapter = adapter_of(a, b);
    if (buffers) {
      adapter.a = ops::Weight::tracked(a);
      adapter.b = ops::Weight::tracked(b);
      a.mutable_grad() = at::full_like(a, 1e6);
      b.mutable_grad() = at::full_like(b, 1e6);
      adapter.a.begin_gradient();  // what the buffers hold is stale
      adapter.b.begin_gradient();
    }
    for (int pass = 0; pass < 2; ++pass) {
      ops::adapted_linear(in[0].to(at::kFloat), in[1].to(at::kFloat), adapter).sum().backward();
    }
    if (!buffers) {
      expected = {a.grad(), b.grad()};
      continue;
    }
    EXPECT_LE(relative_error(a.grad(), expected[0]), 1e-6);
    EXPECT_LE(relative_error(b.grad(), expected[1]), 1e-6);
  }
}

TEST(AdaptedLinear, DropoutDependsOnTheElementsPlaceInTheStep) {
  const at::Tensor x = normal({64, 32}, 1), weight = at::zeros({32, 32}, at::kDouble),
                   identity = at::eye(32, at::kDouble);
  ops::Adapter adapter;
  adapter.a = identity;
  adapter.b = identity;
  adapter.rows = {32};
  const at::Tensor whole = ops::adapted_linear(x, weight, adapter, half());
  const at::Tensor kept = whole.ne(0).to(at::kDouble);
  EXPECT_LE(max_difference(whole, 2 * x * kept), 1e-12);
  EXPECT_NEAR(kept.mean().item<double>(), 0.5, 0.05);
  const at::Tensor second = ops::adapted_linear(x.narrow(0, 40, 24), weight, adapter, half(40));
  EXPECT_TRUE(second.equal(whole.narrow(0, 40, 24)));
  ops::Dropout other = half();
  other.stream = 4;
  EXPECT_FALSE(ops::adapted_linear(x, weight, adapter, other).ne(0).equal(whole.ne(0)));
  other = half();
  other.key = at::full({}, 78, at::kLong);
  EXPECT_FALSE(ops::adapted_linear(x, weight, adapter, other).ne(0).equal(whole.ne(0)));
}

TEST(AdaptedLinear, ArgumentsThatDoNotFitAreRefused) {
  const Tensors in = inputs();
  const auto call = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& weight) {
    return [=] { ops::adapted_linear(inputs()[0], weight, adapter_of(a, b)); };
  };
  ops::testing::refused("[k·r, in]", call(in[2].narrow(0, 0, 4), in[3], in[1]));
  ops::testing::refused("[k·r, in]", call(in[2], in[3].narrow(0, 0, 8), in[1]));
  ops::testing::refused("must not require a gradient",
                        call(in[2], in[3], in[1].clone().requires_grad_()));
  ops::testing::refused("b must be", call(in[2], in[3].to(at::kFloat), in[1]));
}

TEST(AdaptedEpilogues, EqualThoseOfMergedWeights) {
  for (const FusedCase& c : {rope_case(3, 7, 2, 4, 2), swiglu_case(3, 7, 5, 2)}) {
    const at::Tensor expected = c.with_merged(c.inputs);
    for (const ops::Kernels kernels : {ops::Kernels::kFused, ops::Kernels::kReference}) {
      EXPECT_LE(relative_error(c.adapted(c.inputs, {}, kernels), expected), 1e-6);
    }
  }
}

TEST(AdaptedEpilogues, GradientsAreCentralDifferences) {
  for (const FusedCase& c : {rope_case(3, 5, 2, 4, 2), swiglu_case(2, 5, 3, 2)}) {
    for (const ops::Dropout& dropout : {ops::Dropout{}, half()}) {
      check_gradients(
          [&](const Tensors& in) { return c.adapted(in, dropout, ops::Kernels::kFused); }, c.inputs,
          1e-6);
    }
  }
}

/// The fused kernels in bf16 at sizes that they serve, ranks that need padding included: the error
/// against fp32 is at most twice that of single ops in bf16.
TEST(AdaptedGpu, EpiloguesAreAsExactAsSingleOps) {
  if (ops::gpu_count() == 0) GTEST_SKIP() << "no CUDA device";
  for (const int64_t rank : {16, 5}) {
    for (const FusedCase& c :
         {rope_case(2048, 512, 62, 64, rank), swiglu_case(2048, 512, 2048, rank)}) {
      for (const ops::Dropout& dropout : {ops::Dropout{}, half()}) {
        ops::Dropout placed = dropout;
        if (placed.key.defined()) placed.key = placed.key.to(at::kCUDA);
        const auto run = [&](ops::Kernels kernels, at::ScalarType type) {
          const auto f = [&](const Tensors& in) { return c.adapted(in, placed, kernels); };
          Tensors rounded;
          for (const at::Tensor& input : c.inputs)
            rounded.push_back(input.to(at::kBFloat16).to(at::kFloat));
          const at::Tensor direction = normal(c.out, 9).to(at::kBFloat16).to(at::kFloat);
          return ops::testing::evaluate(f, rounded, direction, type, at::kCUDA);
        };
        const auto truth = run(ops::Kernels::kReference, at::kFloat),
                   single = run(ops::Kernels::kReference, at::kBFloat16),
                   fused = run(ops::Kernels::kFused, at::kBFloat16);
        EXPECT_LE(relative_error(fused.value, truth.value),
                  2 * relative_error(single.value, truth.value));
        for (size_t i = 0; i < c.inputs.size(); ++i) {
          EXPECT_LE(relative_error(fused.grads[i], truth.grads[i]),
                    2 * relative_error(single.grads[i], truth.grads[i]) + 1e-6)
              << "input " << i << " rank " << rank;
        }
      }
    }
  }
}

TEST(AdaptedGpu, DropoutKeepsTheElementsThatTheCpuKeeps) {
  if (ops::gpu_count() == 0) GTEST_SKIP() << "no CUDA device";
  const at::Tensor x = normal({64, 32}, 1, at::kFloat), identity = at::eye(32, at::kFloat);
  Tensors kept;
  for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kCUDA)}) {
    ops::Dropout dropout = half(/*first_row=*/40);
    dropout.key = dropout.key.to(device);
    const ops::Adapter adapter = factors(identity.to(device), identity.to(device), {32});
    kept.push_back(
        ops::adapted_linear(x.to(device), at::zeros_like(identity, device), adapter, dropout)
            .ne(0)
            .cpu());
  }
  EXPECT_TRUE(kept[0].equal(kept[1]));
}

ModelConfig adapted_config(ModelConfig config, int64_t rank = 3) {
  config.lora.rank = rank;
  config.lora.alpha = 2 * static_cast<double>(rank);
  return config;
}

/// All B are set to random numbers.
nn::Transformer adapted_model(const ModelConfig& config) {
  nn::Transformer model = tiny_model(config);
  const at::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    if (item.key().ends_with(nn::kAdapterB))
      item.value().copy_(normal(item.value().sizes(), 7) / 4);
  }
  return model;
}

/// The model without adapters whose weights are the merged ones of `model`.
nn::Transformer merged_model(const nn::Transformer& model) {
  ModelConfig config = model->config();
  config.lora.rank = 0;
  nn::Transformer plain(config);
  const auto from = model->named_parameters();
  const at::NoGradGuard no_grad;
  for (const nn::Parameter& parameter : nn::parameters(config)) {
    at::Tensor to = plain->named_parameters()[parameter.name];
    to.copy_(from[parameter.name]);
    const at::Tensor* a = from.find(parameter.name + nn::kAdapterA);
    if (a == nullptr) continue;
    std::vector<int64_t> rows;
    for (const nn::ExternalTensor& tensor : parameter.external) rows.push_back(tensor.rows);
    to.copy_(merged(to, *a, from[parameter.name + nn::kAdapterB], rows, 2));
  }
  plain->weights_are_set();
  return plain;
}

TEST(Adapters, AreDeclaredWithTheNamesOfPeft) {
  ModelConfig config = adapted_config(tiny_config(Position::kRope, true));
  config.kv_heads = 2;
  config.lora.targets = {"qkv", "down"};
  std::map<std::string, nn::Parameter> found;
  for (const nn::Parameter& parameter : nn::parameters(config)) {
    EXPECT_EQ(parameter.trainable, parameter.role == nn::Role::kAdapter) << parameter.name;
    if (parameter.trainable) found[parameter.name] = parameter;
  }
  EXPECT_EQ(found.size(), 2u * 4);
  const nn::Parameter &a = found.at("blocks.1.attention.qkv_lora_a"),
                      &b = found.at("blocks.1.attention.qkv_lora_b");
  EXPECT_EQ(a.shape, (std::vector<int64_t>{9, 32}));
  EXPECT_EQ(b.shape, (std::vector<int64_t>{64, 3}));
  EXPECT_EQ(a.external.at(1).name, "model.layers.1.self_attn.k_proj.lora_A.weight");
  EXPECT_EQ(a.external.at(1).rows, 3);
  EXPECT_EQ(b.external.at(2).name, "model.layers.1.self_attn.v_proj.lora_B.weight");
  EXPECT_EQ(b.external.at(2).rows, 16);
  EXPECT_TRUE(found.contains("blocks.0.ffn.down_lora_b"));
}

TEST(Adapters, LeaveANewModelUnchanged) {
  const ModelConfig config = tiny_config(Position::kRope, true);
  const at::Tensor ids = tokens(2, 16);
  const at::Tensor expected = tiny_model(config)->logits(ids);
  nn::Transformer model = tiny_model(adapted_config(config));
  EXPECT_LE(max_difference(model->logits(ids), expected), 2e-5);
  const at::Tensor a = model->named_parameters()["blocks.0.ffn.down_lora_a"];
  const double bound = 1 / std::sqrt(static_cast<double>(config.ffn_hidden));
  EXPECT_LE(a.abs().max().item<double>(), bound);
  EXPECT_NEAR(a.square().mean().sqrt().item<double>(), bound / std::sqrt(3.0), bound / 10);
}

TEST(Adapters, EqualTheMergedModel) {
  const at::Tensor ids = tokens(2, 16);
  for (const FfnKind ffn : {FfnKind::kSwiglu, FfnKind::kGelu}) {
    for (const std::vector<std::string>& targets :
         {std::vector<std::string>{"qkv", "proj", "up", "down"}, {"qkv", "down"}, {"up"}}) {
      ModelConfig config = adapted_config(tiny_config(Position::kRope, true));
      config.ffn = ffn;
      config.kv_heads = 2;
      config.lora.targets = targets;
      nn::Transformer model = adapted_model(config);
      const at::Tensor expected = merged_model(model)->logits(ids);
      EXPECT_LE(max_difference(model->logits(ids), expected), 2e-4);
      EXPECT_GT(max_difference(tiny_model(config)->logits(ids), expected), 1e-2);
    }
  }
}

TEST(Adapters, AreAllThatGetsGradients) {
  std::map<std::string, at::Tensor> grads;
  for (const bool checkpointing : {false, true}) {
    ModelConfig config = adapted_config(tiny_config(Position::kRope, true));
    config.lora.dropout = 0.25;
    nn::Transformer model = adapted_model(config);
    model->checkpoint_activations(checkpointing);
    nn::LossOptions options;
    options.dropout = {at::full({}, 5, at::kLong), 0};
    model->loss(tokens(2, 12), tokens(2, 12).roll(3), 1.0 / 24, options).backward();
    for (const auto& item : model->named_parameters()) {
      const at::Tensor& grad = item.value().grad();
      const bool adapter = item.key().find("_lora_") != std::string::npos;
      ASSERT_EQ(grad.defined(), adapter) << item.key();
      if (!adapter) continue;
      EXPECT_GT(grad.abs().max().item<double>(), 0) << item.key();
      if (!checkpointing) {
        grads[item.key()] = grad;
      } else {
        EXPECT_TRUE(grad.equal(grads.at(item.key()))) << item.key();
      }
    }
  }
}

TEST(Adapters, AreTheOnlyTrainedParametersAndMasters) {
  nn::Transformer model = adapted_model(adapted_config(tiny_config(Position::kRope, true)));
  const at::Tensor up = model->named_parameters()["blocks.0.ffn.up"].clone();
  FlatParameters flat(model, at::kCPU, at::kBFloat16);
  const auto masters = flat.master();
  EXPECT_EQ(masters.size(), 2u * 8);
  int64_t count = 0;
  for (const auto& [name, master] : masters) {
    EXPECT_NE(name.find("_lora_"), std::string::npos) << name;
    EXPECT_EQ(master.scalar_type(), at::kFloat);
    count += master.numel();
  }
  EXPECT_EQ(flat.trained_parameters(), count);
  EXPECT_EQ(flat.layout().overwritten_end(), flat.size()) << "products overwrite their gradients";
  const at::Tensor rounded = flat.named_weights().at("blocks.0.ffn.up");
  EXPECT_TRUE(rounded.equal(ops::split_weights(up).rounded));
  flat.set_master("blocks.0.ffn.up", up + 1);
  EXPECT_TRUE(rounded.equal(ops::split_weights(up + 1).rounded));
}

}  // namespace
}  // namespace stablemask
