#include "stablemask/nn/fp8.h"

#include <gtest/gtest.h>

#include "stablemask/nn/model.h"
#include "stablemask/ops/optimizer.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using ops::fp8::Format;
using testing_models::tiny_config;
using testing_models::tiny_model;
using testing_models::tokens;

/// Multiples of 16 everywhere.
ModelConfig fp8_model(const testing_models::Family* family = nullptr) {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.ffn_hidden = 48;
  if (family) family->change(config);
  if (config.kv_heads == 2) config.head_dim = 8;
  return config;
}

struct Outcome {
  at::Tensor loss;
  std::map<std::string, at::Tensor> grads;
};

Outcome step(nn::Transformer& model) {
  if (model->fp8) model->fp8->begin_step();
  const at::Tensor loss = model->loss(tokens(2, 16), tokens(2, 16).roll(3), 1.0 / 32);
  loss.backward();
  if (model->fp8) model->fp8->finish_passes();
  Outcome outcome{loss.detach(), {}};
  for (const auto& item : model->named_parameters()) {
    outcome.grads[item.key()] = item.value().grad().clone();
  }
  return outcome;
}

Outcome one_step(const ModelConfig& config, bool fp8, bool checkpointing = false,
                 Format format = Format::kE5M2) {
  nn::Transformer model = tiny_model(config);
  for (at::Tensor& parameter : model->parameters()) {
    parameter.mutable_grad() = at::zeros_like(parameter);
  }
  model->checkpoint_activations(checkpointing);
  if (fp8) nn::use_fp8(model, format);
  return step(model);
}

double apart(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

TEST(Fp8Model, StepsStayCloseToThoseOfFp32ForEveryFamily) {
  std::vector<const testing_models::Family*> families = {nullptr};
  for (const testing_models::Family& family : testing_models::kFamilies) {
    families.push_back(&family);
  }
  for (const testing_models::Family* family : families) {
    SCOPED_TRACE(family ? family->name : "Llama");
    const ModelConfig config = fp8_model(family);
    const Outcome exact = one_step(config, false);
    for (const Format format : {Format::kE5M2, Format::kE4M3}) {
      const Outcome found = one_step(config, true, false, format);
      EXPECT_LT(apart(found.loss, exact.loss), 0.03);
      // A wrong product would bring it to 1 and more; predictions far from uniform amplify
      // rounding.
      EXPECT_FALSE(found.loss.equal(exact.loss)) << "no product was in fp8";
      for (const char* name : {"blocks.0.attention.qkv", "blocks.1.attention.proj",
                               "blocks.0.ffn.up", "blocks.1.ffn.down", "embedding"}) {
        EXPECT_LT(apart(found.grads.at(name), exact.grads.at(name)), 0.5) << name;
      }
    }
  }
}

TEST(Fp8Model, ActivationCheckpointingGivesTheSameBits) {
  for (const testing_models::Family& family : testing_models::kFamilies) {
    SCOPED_TRACE(family.name);
    const ModelConfig config = fp8_model(&family);
    const Outcome kept = one_step(config, true), recomputed = one_step(config, true, true);
    EXPECT_TRUE(kept.loss.equal(recomputed.loss));
    for (const auto& [name, grad] : kept.grads) {
      EXPECT_TRUE(grad.equal(recomputed.grads.at(name))) << name;
    }
  }
}

TEST(Fp8Model, PassesOutsideOfAStepAreThoseWithoutFp8) {
  nn::Transformer plain = tiny_model(fp8_model()), model = tiny_model(fp8_model());
  nn::use_fp8(model, Format::kE5M2);
  const auto nll = [](nn::Transformer& of) { return of->token_nll(tokens(2, 16), tokens(2, 16)); };
  EXPECT_TRUE(nll(model).equal(nll(plain)));
  model->fp8->begin_step();
  EXPECT_FALSE(nll(model).equal(nll(plain)));
  model->fp8->finish_passes();
  EXPECT_TRUE(nll(model).equal(nll(plain)));
  // Sizes that fp8 products do not take.
  EXPECT_TRUE(model->logits(tokens(1, 5)).equal(plain->logits(tokens(1, 5))));
}

TEST(Fp8Model, EachStepReadsItsOwnWeights) {
  nn::Transformer model = tiny_model(fp8_model());
  nn::use_fp8(model, Format::kE5M2);
  const double first = step(model).loss.item<double>();
  EXPECT_EQ(step(model).loss.item<double>(), first);
  {
    const at::NoGradGuard no_grad;
    model->named_parameters()["blocks.0.ffn.up"].mul_(0.5);
  }
  EXPECT_NE(step(model).loss.item<double>(), first);
}

TEST(Fp8Products, HistoryEntersUpdatesOnly) {
  nn::Transformer model = tiny_model(fp8_model());
  nn::use_fp8(model, Format::kE5M2);
  nn::Fp8Products& fp8 = *model->fp8;
  EXPECT_TRUE(fp8.just_in_time());
  const at::Tensor history = fp8.state().at("history");
  ASSERT_EQ(history.sizes().vec(), (std::vector<int64_t>{2 * 4 * 3, nn::Fp8Products::kHistory}));

  step(model);
  EXPECT_GT(fp8.maxima().min().item<double>(), 0) << "every tensor has been seen";
  fp8.update(ops::update_control(1e-3, 1, /*grad_scale=*/-1), ops::Kernels::kFused);
  EXPECT_EQ(history.abs().max().item<double>(), 0) << "a skipped step";
  EXPECT_EQ(fp8.maxima().abs().max().item<double>(), 0);

  step(model);
  const at::Tensor maxima = fp8.maxima().clone();
  fp8.update(ops::update_control(1e-3, 1), ops::Kernels::kFused);
  fp8.updated();
  EXPECT_FALSE(fp8.just_in_time());
  EXPECT_TRUE(history.select(1, 0).equal(maxima));
  EXPECT_EQ(fp8.clipped().item<int64_t>(), 0);

  // A tensor that outgrows its history by more than the margin is clipped once, visibly.
  {
    const at::NoGradGuard no_grad;
    model->named_parameters()["blocks.1.ffn.down"].mul_(64);
  }
  for (const int64_t wanted : {1, 1}) {
    step(model);
    fp8.update(ops::update_control(1e-3, 1), ops::Kernels::kFused);
    const at::Tensor weights = fp8.state().at("saturations").view({2, 4, 3}).select(2, 1);
    EXPECT_EQ(weights.sum().item<int64_t>(), wanted);
  }
}

TEST(Fp8Products, StateMovesToAnotherModel) {
  nn::Transformer model = tiny_model(fp8_model()), other = tiny_model(fp8_model());
  for (nn::Transformer* one : {&model, &other}) nn::use_fp8(*one, Format::kE5M2);
  for (int64_t i = 0; i < 2; ++i) {
    step(model);
    model->fp8->update(ops::update_control(1e-3, 1), ops::Kernels::kFused);
  }
  model->fp8->updated();
  const auto from = model->fp8->state();
  for (auto& [name, tensor] : other->fp8->state()) at::Tensor(tensor).copy_(from.at(name));
  other->fp8->restored();
  EXPECT_FALSE(other->fp8->just_in_time());
  EXPECT_TRUE(step(other).loss.equal(step(model).loss));
}

}  // namespace
}  // namespace stablemask
