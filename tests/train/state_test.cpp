#include "stablemask/train/state.h"

#include <gtest/gtest.h>
#include <torch/optim/adamw.h>

#include "stablemask/ops/optimizer.h"
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

TEST(FlatState, ParametersAndGradientsAreViewsOfTheBuffers) {
  nn::Transformer model = model_with_mask_parameters();
  FlatState state(model, at::kCPU, at::kFloat);
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

TEST(FlatState, GradientsAddUpUntilZeroed) {
  nn::Transformer model = model_with_mask_parameters();
  FlatState state(model, at::kCPU, at::kFloat);
  backward(model);
  const double once = state.grad_norm().item<double>();
  double squares = 0;
  for (const at::Tensor& parameter : model->parameters()) {
    squares += parameter.grad().to(at::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(once, std::sqrt(squares), 1e-5 * once);
  backward(model);
  EXPECT_NEAR(state.grad_norm().item<double>(), 2 * once, 1e-4 * once);
  state.zero_grad();
  EXPECT_EQ(state.grad_norm().item<double>(), 0);
}

TEST(FlatState, UpdatesLikeLibTorchsAdamWWithDecayGroups) {
  nn::Transformer ours = model_with_mask_parameters(), theirs = model_with_mask_parameters();
  FlatState state(ours, at::kCPU, at::kFloat);
  OptimizerConfig config;
  config.lr = 3e-3;
  std::vector<at::Tensor> decay, keep;
  for (const auto& item : theirs->named_parameters()) {
    (item.value().dim() >= 2 ? decay : keep).push_back(item.value());
  }
  const auto options = [&](double weight_decay) {
    return std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(config.lr)
                                                            .betas({config.beta1, config.beta2})
                                                            .eps(config.eps)
                                                            .weight_decay(weight_decay));
  };
  torch::optim::AdamW reference({{decay, options(config.weight_decay)}, {keep, options(0.0)}},
                                torch::optim::AdamWOptions(config.lr));
  for (int64_t step = 1; step <= 5; ++step) {
    state.zero_grad();
    backward(ours, step);
    state.update(config, ops::update_control(config.lr, step));
    reference.zero_grad();
    backward(theirs, step);
    reference.step();
  }
  const auto expected = theirs->named_parameters();
  for (const auto& item : ours->named_parameters()) {
    EXPECT_LT(testing_models::max_difference(item.value(), expected[item.key()]), 2e-6)
        << item.key();
  }
}

TEST(FlatState, FrozenPrefixHasNoPlaceInTheTrainingBuffers) {
  nn::Transformer model = model_with_mask_parameters();
  FlatState state(model, at::kCPU, at::kFloat, /*freeze_layers=*/1);
  const at::Tensor before = model->named_parameters()["blocks.0.ffn.up"].clone();
  EXPECT_EQ(state.master().size(), model->parameters().size());
  EXPECT_EQ(state.named_optimizer().count("m.embedding"), 0u);
  EXPECT_EQ(state.named_optimizer().count("m.blocks.0.ffn.up"), 0u);
  EXPECT_EQ(state.named_optimizer().count("v.blocks.1.ffn.up"), 1u);
  backward(model);
  state.update(OptimizerConfig(), ops::update_control(1e-2, 1));
  const auto parameters = model->named_parameters();
  EXPECT_TRUE(parameters["blocks.0.ffn.up"].equal(before));
  EXPECT_FALSE(parameters["blocks.0.ffn.up"].grad().defined());
}

TEST(FlatState, Bf16WeightsAreTheRoundedMaster) {
  nn::Transformer model = model_with_mask_parameters();
  const at::Tensor weight = model->named_parameters()["head"].clone();
  FlatState state(model, at::kCPU, at::kBFloat16);
  EXPECT_TRUE(state.master().at("head").equal(weight));
  for (const auto& item : model->named_parameters()) {
    EXPECT_EQ(item.value().scalar_type(), at::kBFloat16) << item.key();
    EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
  }
  backward(model);
  EXPECT_GT(state.grad_norm().item<double>(), 0);
  state.update(OptimizerConfig(), ops::update_control(1e-2, 1));
  const at::Tensor master = state.master().at("head");
  EXPECT_FALSE(master.equal(weight));
  EXPECT_TRUE(model->named_parameters()["head"].equal(ops::split_weights(master).rounded));
}

TEST(FlatState, TakesAMaster) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    nn::Transformer model = model_with_mask_parameters();
    FlatState state(model, at::kCPU, type, /*freeze_layers=*/1);
    for (const std::string name : {"embedding", "blocks.1.ffn.up"}) {  // frozen, trained
      const at::Tensor value = at::randn_like(state.master().at(name));
      state.set_master(name, value);
      EXPECT_TRUE(state.master().at(name).equal(value)) << name;
    }
    EXPECT_THROW(state.set_master("no such", at::zeros({1})), c10::Error);
  }
}

}  // namespace
}  // namespace stablemask
