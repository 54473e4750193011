#include "stablemask/optim/flat_parameters.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "stablemask/ops/optimizer.h"
#include "tests/dist/threads.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::tiny_config;
using testing_models::tiny_model;
using testing_models::tokens;

nn::Transformer model_with_mask_parameters() {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.stable_mask.learnable = true;
  return tiny_model(config);
}

void backward(nn::Transformer& model, int64_t seed = 0) {
  model->loss(tokens(2, 16).add(seed).fmod(50), tokens(2, 16).roll(3), 1.0 / 32).backward();
}

TEST(FlatParameters, ParametersAndGradientsAreViewsOfTheBuffers) {
  nn::Transformer model = model_with_mask_parameters();
  FlatParameters state(model, at::kCPU, at::kFloat);
  const auto weights = state.named_weights();
  EXPECT_EQ(weights.size(), model->parameters().size());
  EXPECT_EQ(state.trained_parameters(), nn::parameter_count(model->config()));
  for (const auto& item : model->named_parameters()) {
    EXPECT_EQ(item.value().data_ptr(), weights.at(item.key()).data_ptr()) << item.key();
    EXPECT_EQ(item.value().storage_offset() % 64, 0) << item.key();
    EXPECT_TRUE(item.value().is_leaf()) << item.key();
  }
  std::map<std::string, void*> before;
  for (const auto& item : model->named_parameters()) {
    before[item.key()] = item.value().grad().data_ptr();
  }
  backward(model);
  for (const auto& item : model->named_parameters()) {
    EXPECT_EQ(item.value().grad().data_ptr(), before[item.key()]) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<double>(), 0) << item.key();
  }
}

TEST(FlatParameters, GradientsAddUpUntilZeroed) {
  nn::Transformer model = model_with_mask_parameters();
  FlatParameters state(model, at::kCPU, at::kFloat);
  backward(model);
  const double once = state.grad_norm().item<double>();
  double squares = 0;
  for (const at::Tensor& parameter : model->parameters()) {
    squares += parameter.grad().to(at::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(once, std::sqrt(squares), 1e-5 * once);
  backward(model);
  EXPECT_NEAR(state.grad_norm().item<double>(), 2 * once, 1e-4 * once);
  state.zero_gradients();
  EXPECT_EQ(state.grad_norm().item<double>(), 0);
}

TEST(FlatParameters, FrozenPrefixHasNoPlaceInTheTrainingBuffers) {
  nn::Transformer model = model_with_mask_parameters();
  FlatParameters state(model, at::kCPU, at::kFloat, /*freeze_layers=*/1);
  const at::Tensor before = model->named_parameters()["blocks.0.ffn.up"].clone();
  EXPECT_EQ(state.master().size(), model->parameters().size());
  const auto trained = state.views(state.gradients(), "grad.");
  EXPECT_EQ(trained.count("grad.embedding"), 0u);
  EXPECT_EQ(trained.count("grad.blocks.0.ffn.up"), 0u);
  EXPECT_EQ(trained.count("grad.blocks.1.ffn.up"), 1u);
  backward(model);
  const auto parameters = model->named_parameters();
  EXPECT_TRUE(parameters["blocks.0.ffn.up"].equal(before));
  EXPECT_FALSE(parameters["blocks.0.ffn.up"].grad().defined());
}

TEST(FlatParameters, Bf16WeightsAreTheRoundedMaster) {
  nn::Transformer model = model_with_mask_parameters();
  const at::Tensor weight = model->named_parameters()["head"].clone();
  FlatParameters state(model, at::kCPU, at::kBFloat16);
  EXPECT_TRUE(state.master().at("head").equal(weight));
  for (const auto& item : model->named_parameters()) {
    EXPECT_EQ(item.value().scalar_type(), at::kBFloat16) << item.key();
    EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
  }
  EXPECT_TRUE(model->named_parameters()["head"].equal(ops::split_weights(weight).rounded));
  backward(model);
  EXPECT_GT(state.grad_norm().item<double>(), 0);
}

TEST(FlatParameters, OrdersOverwrittenThenDecayingThenOtherParameters) {
  nn::Transformer model = model_with_mask_parameters();
  FlatParameters state(model, at::kCPU, at::kFloat);
  state.gradients().fill_(1.0);
  state.zero_accumulated_gradients();
  const auto gradients = state.views(state.gradients(), "");
  for (const nn::Parameter& parameter : nn::parameters(model->config())) {
    const at::Tensor& gradient = gradients.at(parameter.name);
    EXPECT_EQ(gradient.min().item<double>(), parameter.multiplies ? 1.0 : 0.0) << parameter.name;
    EXPECT_EQ(gradient.storage_offset() < state.decay_end(), parameter.decays()) << parameter.name;
  }
}

TEST(FlatParameters, TakesAMaster) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    nn::Transformer model = model_with_mask_parameters();
    FlatParameters state(model, at::kCPU, type, /*freeze_layers=*/1);
    for (const std::string name : {"embedding", "blocks.1.ffn.up"}) {  // frozen, trained
      const at::Tensor value = at::randn_like(state.master().at(name));
      state.set_master(name, value);
      EXPECT_TRUE(state.master().at(name).equal(value)) << name;
    }
    EXPECT_THROW(state.set_master("no such", at::zeros({1})), c10::Error);
  }
}

TEST(FlatParameters, SharedOnesTellParametersFromBuffersOfAllProcesses) {
  testing::run_processes(3, [](const std::shared_ptr<dist::Group>& group) {
    nn::Transformer model = model_with_mask_parameters();
    FlatParameters state(model, at::kCPU, at::kBFloat16, /*freeze_layers=*/1,
                         share_of(*group, ShardKind::kOptimizer));
    at::Tensor local = at::full({state.layout().local_size()}, NAN);
    std::map<std::string, at::Tensor> values;
    double next = 1;
    for (const auto& [name, weight] : state.named_weights()) {
      values[name] = at::arange(next, next + static_cast<double>(weight.numel()), at::kFloat)
                         .div(1000)
                         .view(weight.sizes());
      next += static_cast<double>(weight.numel());
      state.set_master(name, values[name]);
      if (state.layout().find(name)) state.set_local(local, name, values[name]);
    }
    const auto found = state.gather(local, "x.", *group), master = state.master(*group);
    if (group->rank() != 0) {
      EXPECT_TRUE(found.empty() && master.empty());
      return;
    }
    EXPECT_EQ(found.size(), state.layout().entries().size());
    for (const auto& [name, tensor] : found) {
      EXPECT_TRUE(tensor.equal(values.at(name.substr(2)))) << name;
    }
    EXPECT_EQ(master.size(), values.size());
    for (const auto& [name, tensor] : master) EXPECT_TRUE(tensor.equal(values.at(name))) << name;
    EXPECT_THROW(state.set_local(local, "embedding", values.at("embedding")), c10::Error)
        << "is frozen";
    EXPECT_THROW(state.master(), c10::Error) << "of one process";
  });
}

}  // namespace
}  // namespace stablemask
