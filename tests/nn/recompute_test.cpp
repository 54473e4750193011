#include <gtest/gtest.h>
#include <torch/csrc/autograd/function.h>

#include "stablemask/nn/model.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::tiny_config;
using testing_models::tiny_model;
using testing_models::tokens;

struct Outcome {
  at::Tensor loss;
  std::map<std::string, at::Tensor> grads;
};

/// Summed loss and gradients of two batches. `preallocated_grads`: with gradient buffers allocated
/// before the first backward, as in training.
Outcome two_backwards(const ModelConfig& config, bool checkpointing, bool preallocated_grads) {
  nn::Transformer model = tiny_model(config);
  model->checkpoint_activations(checkpointing);
  if (preallocated_grads) {
    for (at::Tensor& parameter : model->parameters()) {
      parameter.mutable_grad() = at::zeros_like(parameter);
    }
  }
  Outcome outcome{at::zeros({}), {}};
  for (const int64_t shift : {3, 7}) {
    at::Tensor start = at::zeros({2, 21}, at::kLong);
    start.narrow(1, 9, 12).fill_(9);
    const at::Tensor loss =
        model->loss(tokens(2, 21), tokens(2, 21).roll(shift), 1.0 / 42,
                    {1e-4, shift == 7 && config.window == 0 ? start : at::Tensor()});
    loss.backward();
    outcome.loss += loss.detach();
  }
  for (const auto& item : model->named_parameters())
    outcome.grads[item.key()] = item.value().grad();
  return outcome;
}

void expect_same_bits(const ModelConfig& config) {
  for (const bool preallocated_grads : {false, true}) {
    const Outcome kept = two_backwards(config, false, preallocated_grads);
    const Outcome recomputed = two_backwards(config, true, preallocated_grads);
    EXPECT_TRUE(kept.loss.equal(recomputed.loss));
    for (const auto& [name, grad] : kept.grads) {
      ASSERT_TRUE(recomputed.grads.at(name).defined()) << name;
      EXPECT_TRUE(grad.equal(recomputed.grads.at(name))) << name;
      EXPECT_GT(grad.abs().max().item<double>(), 0) << name;
    }
  }
}

TEST(ActivationCheckpointing, IsBitwiseEqualForEveryKindOfBlock) {
  for (const Position position : {Position::kRope, Position::kAlibi}) {
    for (const bool stable_mask : {false, true}) {
      expect_same_bits(tiny_config(position, stable_mask));
    }
  }
}

TEST(ActivationCheckpointing, IsBitwiseEqualWithEveryOption) {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.stable_mask.learnable = true;
  config.qk_norm = true;
  config.kv_heads = 2;
  config.tied_head = true;
  expect_same_bits(config);
  config.window = 6;
  config.norm = NormKind::kLayer;
  config.ffn = FfnKind::kGelu;
  expect_same_bits(config);
}

TEST(ActivationCheckpointing, IsBitwiseEqualForEveryFamily) {
  for (const testing_models::Family& family : testing_models::kFamilies) {
    ModelConfig config = tiny_config(Position::kRope, true);
    family.change(config);
    SCOPED_TRACE(family.name);
    expect_same_bits(config);
  }
}

TEST(ActivationCheckpointing, TrainsBlocksAfterFrozenBlocks) {
  std::map<std::string, at::Tensor> grads;
  for (const bool checkpointing : {false, true}) {
    nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
    model->checkpoint_activations(checkpointing);
    for (auto& item : model->named_parameters()) {
      const bool frozen = item.key() == "embedding" || item.key().rfind("blocks.0.", 0) == 0;
      item.value().set_requires_grad(!frozen);
    }
    model->loss(tokens(2, 12), tokens(2, 12).roll(3), 1.0 / 24).backward();
    for (const auto& item : model->named_parameters()) {
      const at::Tensor& grad = item.value().grad();
      EXPECT_EQ(grad.defined(), item.value().requires_grad()) << item.key();
      if (!checkpointing) {
        grads[item.key()] = grad;
      } else if (grad.defined()) {
        EXPECT_TRUE(grad.equal(grads.at(item.key()))) << item.key();
      }
    }
  }
}

/// Number of autograd nodes between a loss and its leaves.
int64_t count_nodes(const at::Tensor& loss) {
  std::set<torch::autograd::Node*> seen;
  std::vector<torch::autograd::Node*> open = {loss.grad_fn().get()};
  while (!open.empty()) {
    torch::autograd::Node* const node = open.back();
    open.pop_back();
    if (node == nullptr || !seen.insert(node).second) continue;
    for (const auto& edge : node->next_edges()) open.push_back(edge.function.get());
  }
  return static_cast<int64_t>(seen.size());
}

TEST(ActivationCheckpointing, KeepsOneAutogradNodePerBlock) {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.layers = 6;
  nn::Transformer model = tiny_model(config);
  model->checkpoint_activations(true);
  const at::Tensor loss = model->loss(tokens(2, 12), tokens(2, 12).roll(3), 1.0);
  // Loss, its view, final norm, embedding, one per block; and one leaf node per parameter.
  const auto leaves = static_cast<int64_t>(model->parameters().size());
  EXPECT_LE(count_nodes(loss) - leaves, config.layers + 4);
}

TEST(ActivationCheckpointing, HasNoEffectWithoutGradients) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  at::NoGradGuard no_grad;
  const at::Tensor logits = model->logits(tokens(2, 12));
  model->checkpoint_activations(true);
  EXPECT_TRUE(model->logits(tokens(2, 12)).equal(logits));
}

}  // namespace
}  // namespace stablemask
