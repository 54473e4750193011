#include "stablemask/optim/optimizer.h"

#include <gtest/gtest.h>
#include <torch/optim/adamw.h>

#include "stablemask/dist/group.h"
#include "stablemask/ops/optimizer.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::tiny_config;
using testing_models::tiny_model;
using testing_models::tokens;

/// A model with parameters of every group, in flat buffers.
struct Training {
  explicit Training(const OptimizerConfig& config = {}, at::ScalarType compute = at::kFloat,
                    int64_t freeze_layers = 0, Share share = {}, int64_t seed = 0)
      : model(learnable_mask_model()),
        flat(std::make_shared<FlatParameters>(model, at::kCPU, compute, freeze_layers, share)),
        optimizer(make_optimizer(config, flat, ops::Kernels::kFused, seed)) {}

  static nn::Transformer learnable_mask_model() {
    ModelConfig config = tiny_config(Position::kRope, true);
    config.stable_mask.learnable = true;
    return tiny_model(config);
  }

  void backward(int64_t seed) {
    flat->zero_gradients();
    model->loss(tokens(2, 16).add(seed).fmod(50), tokens(2, 16).roll(3), 1.0 / 32).backward();
  }

  nn::Transformer model;
  std::shared_ptr<FlatParameters> flat;
  std::unique_ptr<Optimizer> optimizer;
};

TEST(AdamW, UpdatesLikeLibTorchsWithDecayGroups) {
  OptimizerConfig config;
  config.lr = 3e-3;
  Training ours(config);
  nn::Transformer theirs = Training::learnable_mask_model();
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
    ours.backward(step);
    ours.optimizer->update({0, ours.flat->size()}, ops::update_control(config.lr, step));
    reference.zero_grad();
    theirs->loss(tokens(2, 16).add(step).fmod(50), tokens(2, 16).roll(3), 1.0 / 32).backward();
    reference.step();
  }
  const auto expected = theirs->named_parameters();
  for (const auto& item : ours.model->named_parameters()) {
    EXPECT_LT(testing_models::max_difference(item.value(), expected[item.key()]), 2e-6)
        << item.key();
  }
}

OptimizerConfig with_state(StateDtype state) {
  OptimizerConfig config;
  config.state = state;
  return config;
}

void expect_parts_equal_the_whole(const OptimizerConfig& config) {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    Training whole(config, compute), parts(config, compute);
    const int64_t size = whole.flat->size(), decay_end = whole.flat->decay_end();
    ASSERT_LT(decay_end, size);
    for (int64_t step = 1; step <= 3; ++step) {
      const at::Tensor control = ops::update_control(1e-2, step);
      whole.backward(step);
      whole.optimizer->update({0, size}, control);
      parts.backward(step);
      // Borders inside each decay group, between them, and an empty part.
      const std::vector<int64_t> ends = {0, 192, decay_end - 64, decay_end + 64, size, size};
      for (size_t i = 0; i + 1 < ends.size(); ++i) {
        parts.optimizer->update({ends[i], ends[i + 1]}, control);
      }
    }
    EXPECT_TRUE(whole.flat->weights().equal(parts.flat->weights()));
    const auto buffers = parts.optimizer->buffers();
    for (const auto& [name, buffer] : whole.optimizer->buffers()) {
      EXPECT_TRUE(buffer.values.equal(buffers.at(name).values)) << name;
    }
  }
}

TEST(Optimizer, UpdatingPartsEqualsUpdatingTheWhole) {
  for (const StateDtype state : {StateDtype::kFp32, StateDtype::kBf16}) {
    expect_parts_equal_the_whole(with_state(state));
  }
}

/// The bf16 state of a parameter that several processes hold parts of, from equal gradients.
std::map<std::string, at::Tensor> state_of_processes(int64_t parts, int64_t seed) {
  std::map<std::string, at::Tensor> state;
  for (int64_t part = 0; part < parts; ++part) {
    Training run(with_state(StateDtype::kBf16), at::kFloat, 0, {part, parts}, seed);
    const FlatLayout& layout = run.flat->layout();
    for (int64_t step = 1; step <= 3; ++step) {
      run.flat->zero_gradients();
      for (const auto& [name, gradient] : run.flat->views(run.flat->gradients(), "")) {
        const at::Tensor values = at::arange(gradient.numel(), gradient.options());
        gradient.view({-1}).copy_((values * static_cast<double>(step)).sin());
      }
      for (const FlatRange& own : layout.own_ranges()) {
        run.optimizer->update(own, ops::update_control(1e-2, step));
      }
    }
    for (const auto& [name, buffer] : run.optimizer->buffers()) {
      const at::Tensor& values = buffer.values;
      EXPECT_EQ(values.scalar_type(), at::kBFloat16);
      at::Tensor& whole = state[name];
      if (!whole.defined()) whole = at::zeros({layout.size()}, values.options());
      for (const FlatRange& own : layout.own_ranges()) {
        const FlatRange place = layout.local(own);
        whole.narrow(0, own.begin, own.size()).copy_(values.narrow(0, place.begin, place.size()));
      }
    }
    if (part + 1 < parts) continue;
    std::map<std::string, at::Tensor> named;
    for (const auto& [name, buffer] : state) named.merge(run.flat->views(buffer, name + "."));
    return named;
  }
  return {};
}

TEST(Optimizer, Bf16StateIsRoundedAlikeWhateverTheNumberOfProcesses) {
  const auto one = state_of_processes(1, 5);
  for (const int64_t parts : {2, 3}) {
    for (const auto& [name, values] : state_of_processes(parts, 5)) {
      EXPECT_TRUE(values.equal(one.at(name))) << name << " of " << parts << " processes";
    }
  }
  EXPECT_FALSE(state_of_processes(1, 6).at("m.head").equal(one.at("m.head"))) << "another seed";
}

void expect_declared_state(const OptimizerConfig& config) {
  const Training training(config, at::kBFloat16, /*freeze_layers=*/1);
  const auto group = dist::single_process_group();
  std::map<std::string, at::Tensor> state;
  for (const auto& [name, buffer] : training.optimizer->buffers()) {
    EXPECT_EQ(buffer.values.numel(), training.flat->size()) << name;
    state.merge(training.flat->gather(buffer.values, name + ".", *group));
  }
  size_t bytes = 0;
  for (const auto& [name, tensor] : state) bytes += tensor.nbytes();
  int64_t declared = 0;
  for (const nn::Parameter& parameter : nn::parameters(training.model->config())) {
    const OptimizerBytes of_one = optimizer_bytes(config, parameter);
    EXPECT_EQ(of_one.working, 0);
    if (!parameter.is_frozen(1)) declared += of_one.state;
  }
  EXPECT_EQ(static_cast<int64_t>(bytes), declared);
  EXPECT_EQ(state.count("m.embedding"), 0u);
  EXPECT_EQ(state.count("v.blocks.0.ffn.up"), 0u);
  EXPECT_EQ(state.count("m.blocks.1.ffn.up"), 1u);
  EXPECT_EQ(state.count("v.blocks.1.ffn.up"), 1u);
}

TEST(Optimizer, StateHasTheDeclaredSizeAndNoFrozenParameter) {
  for (const StateDtype state : {StateDtype::kFp32, StateDtype::kBf16}) {
    expect_declared_state(with_state(state));
  }
  nn::Parameter parameter;
  parameter.shape = {3, 5};
  EXPECT_EQ(optimizer_bytes(with_state(StateDtype::kFp32), parameter).state, 8 * 15);
  EXPECT_EQ(optimizer_bytes(with_state(StateDtype::kBf16), parameter).state, 4 * 15);
}

TEST(Optimizer, NegativeGradientScaleLeavesEverythingUnchanged) {
  Training training;
  training.backward(1);
  const at::Tensor weights = training.flat->weights().clone();
  training.optimizer->update({0, training.flat->size()}, ops::update_control(1e-2, 1, -1.0));
  EXPECT_TRUE(training.flat->weights().equal(weights));
  for (const auto& [name, buffer] : training.optimizer->buffers()) {
    EXPECT_EQ(buffer.values.abs().max().item<double>(), 0.0) << name;
  }
}

TEST(Optimizer, Bf16WeightsStayTheRoundedMaster) {
  Training training({}, at::kBFloat16);
  const at::Tensor before = training.flat->master().at("head").clone();
  training.backward(1);
  training.optimizer->update({0, training.flat->size()}, ops::update_control(1e-2, 1));
  const at::Tensor master = training.flat->master().at("head");
  EXPECT_FALSE(master.equal(before));
  EXPECT_TRUE(training.model->named_parameters()["head"].equal(ops::split_weights(master).rounded));
}

TEST(Optimizer, FrozenParametersAreNotUpdated) {
  Training training({}, at::kFloat, /*freeze_layers=*/1);
  const auto parameters = training.model->named_parameters();
  const at::Tensor before = parameters["blocks.0.ffn.up"].clone();
  training.backward(1);
  training.optimizer->update({0, training.flat->size()}, ops::update_control(1e-2, 1));
  EXPECT_TRUE(parameters["blocks.0.ffn.up"].equal(before));
}

}  // namespace
}  // namespace stablemask
