#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "stablemask/nn/decoder.h"
#include "stablemask/nn/model.h"
#include "stablemask/optim/flat_parameters.h"
#include "tests/nn/models.h"
#include "tests/ops/checks.h"

/// The model on a GPU in bf16 against the same model on the CPU in fp32. The GPU's error may be
/// twice that of the reference ops in bf16 on the CPU.
namespace stablemask {
namespace {

using ops::testing::relative_error;
using testing_models::tiny_model;
using testing_models::tokens;

constexpr double kBf16 = 1.0 / 256;

struct Case {
  Position position;
  bool stable_mask;
  int64_t kv_heads, head_dim;
  bool qk_norm = false;
  MaskLengthSpec length = {MaskLengthSpec::Kind::kFixed, 64};
  const testing_models::Family* family = nullptr;
};

ModelConfig config_of(const Case& c) {
  ModelConfig config = testing_models::tiny_config(c.position, c.stable_mask);
  if (c.family) c.family->change(config);
  config.stable_mask.mask_length = c.length;
  config.kv_heads = c.kv_heads;
  config.head_dim = c.head_dim;
  config.channels = 128;
  config.ffn_hidden = 192;
  config.init_std = 0.08;
  config.qk_norm = c.qk_norm;
  return config;
}

/// A model with weights that are exact in bf16, on a device and in a compute dtype.
struct Placed {
  Placed(const ModelConfig& config, at::Device device, at::ScalarType compute)
      : model(rounded_model(config)), flat(model, device, compute) {}

  static nn::Transformer rounded_model(const ModelConfig& config) {
    nn::Transformer model = tiny_model(config);
    at::NoGradGuard no_grad;
    for (at::Tensor& weight : model->parameters()) {
      weight.copy_(weight.to(at::kBFloat16).to(at::kFloat));
    }
    return model;
  }

  nn::Transformer model;
  FlatParameters flat;
};

struct Outcome {
  at::Tensor logits, loss;
  std::map<std::string, at::Tensor> grads;
};

Outcome run(ModelConfig config, at::Device device, at::ScalarType compute) {
  // Only the GPU's kernels are under test.
  if (device.is_cpu()) config.attention = AttentionBackend::kReference;
  Placed placed(config, device, compute);
  const at::Tensor ids = tokens(2, 96).to(device), targets = tokens(2, 96).roll(5).to(device);
  Outcome outcome;
  {
    at::NoGradGuard no_grad;
    outcome.logits = placed.model->logits(ids).to(at::kCPU, at::kFloat);
  }
  const at::Tensor loss = placed.model->loss(ids, targets, 1.0 / 192);
  loss.backward();
  outcome.loss = loss.detach().to(at::kCPU);
  for (const auto& item : placed.model->named_parameters()) {
    outcome.grads[item.key()] = item.value().grad().to(at::kCPU);
  }
  return outcome;
}

class GpuModel : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_P(GpuModel, ForwardAndBackwardMatchTheCpu) {
  const ModelConfig config = config_of(GetParam());
  const Outcome exact = run(config, at::kCPU, at::kFloat);
  const Outcome rounded = run(config, at::kCPU, at::kBFloat16);
  const Outcome found = run(config, at::kCUDA, at::kBFloat16);
  const auto expect_close = [](const at::Tensor& gpu, const at::Tensor& cpu,
                               const at::Tensor& truth, const std::string& what) {
    EXPECT_LE(relative_error(gpu, truth), 2 * relative_error(cpu, truth) + kBf16) << what;
  };
  expect_close(found.logits, rounded.logits, exact.logits, "logits");
  expect_close(found.loss, rounded.loss, exact.loss, "loss");
  for (const auto& [name, grad] : exact.grads) {
    expect_close(found.grads.at(name), rounded.grads.at(name), grad, name);
  }
}

TEST_P(GpuModel, CachedGenerationEqualsTheFullForward) {
  ModelConfig config = config_of(GetParam());
  Placed gpu(config, at::kCUDA, at::kBFloat16);
  const at::Tensor ids = tokens(2, 96);
  at::NoGradGuard no_grad;
  // Prompts in two chunks, then both sequences token by token.
  const at::Tensor placed = ids.to(at::kCUDA);
  nn::KvCache cache(config, 2, 96, at::TensorOptions(at::kBFloat16).device(at::kCUDA));
  nn::Decoder decoder(gpu.model, 2, 96);
  std::vector<at::Tensor> pieces;
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 70}, {70, 9}}) {
    std::vector<at::Tensor> logits;
    for (int64_t row = 0; row < 2; ++row) {
      nn::ForwardArgs args;
      args.cached = {&cache, row, first};
      const at::Tensor chunk = placed[row].narrow(0, first, count);
      logits.push_back(gpu.model->logits(chunk.unsqueeze(0), args));
      decoder.prefill(row, first, chunk);
    }
    pieces.push_back(at::cat(logits));
  }
  const at::Tensor rows = at::arange(2, placed.options());
  for (int64_t i = 79; i < 96; ++i) {
    const at::Tensor next = placed.select(1, i).contiguous();
    pieces.push_back(decoder.decode(next, at::full_like(rows, i), rows).unsqueeze(1));
  }
  const at::Tensor cached = at::cat(pieces, 1).to(at::kCPU, at::kFloat);

  config.attention = AttentionBackend::kReference;
  Placed cpu(config, at::kCPU, at::kFloat), cpu_bf16(config, at::kCPU, at::kBFloat16);
  const at::Tensor exact = cpu.model->logits(ids);
  const double yardstick = relative_error(cpu_bf16.model->logits(ids), exact);
  EXPECT_LE(relative_error(cached, exact), 2 * yardstick + kBf16);

  // The most likely token must agree where its margin exceeds the rounding error.
  const at::Tensor top = std::get<0>(exact.topk(2, -1));
  const double reach = 2 * (cached - exact).abs().max().item<double>();
  const at::Tensor clear = (top.select(-1, 0) - top.select(-1, 1)) > reach;
  EXPECT_GT(clear.sum().item<int64_t>(), 0);
  const at::Tensor same = cached.argmax(-1) == exact.argmax(-1);
  EXPECT_TRUE(same.masked_select(clear).all().item<bool>());
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Position position : {Position::kRope, Position::kAlibi}) {
    for (const bool stable_mask : {false, true}) {
      for (const int64_t kv_heads : {4, 2}) {
        for (const int64_t head_dim : {64, 128}) {
          all.push_back({position, stable_mask, kv_heads, head_dim});
        }
      }
    }
    all.push_back({position, true, 2, 64, /*qk_norm=*/true});
    all.push_back({position, true, 2, 64, false, {MaskLengthSpec::Kind::kInfinite, 0}});
  }
  for (const testing_models::Family& family : testing_models::kFamilies) {
    all.push_back(
        {Position::kRope, true, 2, 64, false, {MaskLengthSpec::Kind::kFixed, 64}, &family});
  }
  return all;
}

std::string name_of(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  if (c.family) return c.family->name;
  const bool infinite = c.length.kind == MaskLengthSpec::Kind::kInfinite;
  return std::string(c.position == Position::kRope ? "Rope" : "Alibi") +
         (c.stable_mask ? "StableMask" : "Causal") + std::to_string(c.kv_heads) + "Keys" +
         std::to_string(c.head_dim) + "Wide" + (c.qk_norm ? "QkNorm" : "") +
         (infinite ? "Infinite" : "");
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuModel, testing::ValuesIn(cases()), name_of);

}  // namespace
}  // namespace stablemask
