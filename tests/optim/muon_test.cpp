#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "stablemask/dist/group.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/ops/optimizer.h"
#include "stablemask/optim/optimizer.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::tiny_config;
using testing_models::tiny_model;
using testing_models::tokens;

OptimizerConfig muon_config() {
  OptimizerConfig config;
  config.kind = OptimizerKind::kMuon;
  config.lr = 1e-2;
  config.momentum = 0.9;
  return config;
}

/// Two heads of keys and values for four of queries; a learnable mask.
ModelConfig grouped_model() {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.kv_heads = 2;
  config.stable_mask.learnable = true;
  return config;
}

struct MuonTraining {
  explicit MuonTraining(at::ScalarType compute = at::kFloat, int64_t freeze_layers = 0,
                        const OptimizerConfig& config = muon_config())
      : model(tiny_model(grouped_model())),
        flat(std::make_shared<FlatParameters>(model, at::kCPU, compute, freeze_layers)),
        optimizer(make_optimizer(config, flat)) {}

  void backward(int64_t seed) {
    flat->zero_gradients();
    model->loss(tokens(2, 16).add(seed).fmod(50), tokens(2, 16).roll(3), 1.0 / 32).backward();
  }
  void update(const at::Tensor& control) {
    optimizer->prepare(control, *group);
    optimizer->update({0, flat->size()}, control);
  }

  std::shared_ptr<dist::Group> group = dist::single_process_group();
  nn::Transformer model;
  std::shared_ptr<FlatParameters> flat;
  std::unique_ptr<Optimizer> optimizer;
};

/// Muon and AdamW in fp64, parameter by parameter.
class LiteralMuon {
 public:
  void update(const std::string& name, at::Tensor& weight, const at::Tensor& grad, int64_t step) {
    const at::Tensor g = grad.to(at::kDouble);
    at::Tensor& m = buffer("m." + name, g);
    const std::vector<int64_t> rows = cuts(name, weight);
    const double decay = weight.dim() >= 2 ? config_.weight_decay : 0.0;
    weight.mul_(1 - config_.lr * decay);
    if (rows.empty()) {
      at::Tensor& v = buffer("v." + name, g);
      m.mul_(config_.beta1).add_(g, 1 - config_.beta1);
      v.mul_(config_.beta2).add_(g.square(), 1 - config_.beta2);
      const double c1 = 1 - std::pow(config_.beta1, step), c2 = 1 - std::pow(config_.beta2, step);
      weight.sub_(config_.lr * (m / c1) / ((v / c2).sqrt() + config_.eps));
      return;
    }
    m.mul_(config_.momentum).add_(g);
    std::vector<at::Tensor> parts = (g + config_.momentum * m).split(rows, 0);
    for (at::Tensor& part : parts) {
      const auto [u, s, vh] = at::linalg_svd(part, /*full_matrices=*/false);
      at::Tensor x = s / s.square().sum().sqrt();
      for (int i = 0; i < 5; ++i) x = 3.4445 * x - 4.7750 * x.pow(3) + 2.0315 * x.pow(5);
      const auto larger = static_cast<double>(std::max(part.size(0), part.size(1)));
      part = 0.2 * std::sqrt(larger) * u.matmul(x.diag()).matmul(vh);
    }
    weight.sub_(at::cat(parts, 0), config_.lr);
  }

 private:
  /// Of grouped_model(), written out: rows of the matrices of a projection.
  static std::vector<int64_t> cuts(const std::string& name, const at::Tensor& weight) {
    if (name.ends_with("attention.qkv")) return {32, 16, 16};
    if (name.ends_with("ffn.up")) return {40, 40};
    if (name.starts_with("blocks.") && weight.dim() == 2) return {weight.size(0)};
    return {};
  }
  at::Tensor& buffer(const std::string& name, const at::Tensor& like) {
    return buffers_.try_emplace(name, at::zeros_like(like)).first->second;
  }

  const OptimizerConfig config_ = muon_config();
  std::map<std::string, at::Tensor> buffers_;
};

TEST(MuonOptimizer, UpdatesLikeTheFormulasMatrixByMatrix) {
  MuonTraining ours;
  LiteralMuon literal;
  std::map<std::string, at::Tensor> weights;
  for (const auto& [name, weight] : ours.flat->master()) weights[name] = weight.to(at::kDouble);
  for (int64_t step = 1; step <= 3; ++step) {
    ours.backward(step);
    const double scale = 1.0 / static_cast<double>(step);
    for (const auto& [name, grad] : ours.flat->views(ours.flat->gradients(), "")) {
      literal.update(name, weights.at(name), grad * scale, step);
    }
    ours.update(ops::update_control(muon_config().lr, step, scale));
  }
  for (const auto& [name, weight] : ours.flat->master()) {
    EXPECT_LT(testing_models::max_difference(weight, weights.at(name)), 1e-5) << name;
  }
}

TEST(MuonOptimizer, MatricesOfAProjectionAreThoseOfTheTable) {
  std::map<std::string, std::vector<int64_t>> rows;
  for (const nn::Parameter& one : nn::parameters(grouped_model())) {
    if (!one.matrix_rows().empty()) rows[one.name] = one.matrix_rows();
  }
  const std::vector<int64_t> qkv = {32, 16, 16}, gate_up = {40, 40};
  EXPECT_EQ(rows.size(), 8u) << "four projections of two blocks";
  EXPECT_EQ(rows.at("blocks.1.attention.qkv"), qkv);
  EXPECT_EQ(rows.at("blocks.0.ffn.up"), gate_up);
  EXPECT_EQ(rows.at("blocks.0.ffn.down"), std::vector<int64_t>{32});
}

TEST(MuonOptimizer, UpdatingPartsEqualsUpdatingTheWhole) {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    MuonTraining whole(compute), parts(compute);
    const int64_t size = whole.flat->size();
    const FlatRange blocks = whole.flat->layout().blocks();
    for (int64_t step = 1; step <= 3; ++step) {
      const at::Tensor control = ops::update_control(1e-2, step);
      whole.backward(step);
      whole.update(control);
      parts.backward(step);
      parts.optimizer->prepare(control, *parts.group);
      // Borders outside the blocks, at theirs, inside a matrix, and an empty part.
      const std::vector<int64_t> ends = {
          0, 64, blocks.begin, blocks.begin + 192, blocks.end + 64, size - 64, size, size};
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

void expect_declared_state_of_muon(const OptimizerConfig& config) {
  const MuonTraining training(at::kBFloat16, /*freeze_layers=*/1, config);
  std::map<std::string, at::Tensor> state;
  for (const auto& [name, buffer] : training.optimizer->buffers()) {
    EXPECT_EQ(buffer.values.numel(), training.flat->layout().local_size(buffer.cover)) << name;
    state.merge(training.flat->gather(buffer.values, name + ".", *training.group, buffer.cover));
  }
  size_t bytes = 0;
  for (const auto& [name, tensor] : state) bytes += tensor.nbytes();
  int64_t declared = 0;
  for (const nn::Parameter& parameter : nn::parameters(grouped_model())) {
    if (parameter.is_frozen(1)) continue;
    declared += optimizer_bytes(config, parameter).state;
  }
  EXPECT_EQ(static_cast<int64_t>(bytes), declared);
  EXPECT_EQ(state.count("momentum.blocks.1.ffn.up"), 1u);
  EXPECT_EQ(state.count("v.blocks.1.ffn.up"), 0u) << "a matrix has its momentum alone";
  EXPECT_EQ(state.count("momentum.blocks.0.ffn.up"), 0u) << "is frozen";
  EXPECT_EQ(state.count("m.head") + state.count("v.norm.weight"), 2u);
  EXPECT_EQ(state.count("momentum.head"), 0u);
}

TEST(MuonOptimizer, StateHasTheDeclaredSize) {
  OptimizerConfig config = muon_config();
  expect_declared_state_of_muon(config);
  config.state = StateDtype::kBf16;  // of AdamW's moments alone
  expect_declared_state_of_muon(config);
  const MuonTraining training(at::kBFloat16, 0, config);
  const auto buffers = training.optimizer->buffers();
  EXPECT_EQ(buffers.at("momentum").values.scalar_type(), at::kFloat);
  EXPECT_EQ(buffers.at("v").values.scalar_type(), at::kBFloat16);
}

TEST(MuonOptimizer, NegativeGradientScaleLeavesEverythingUnchanged) {
  MuonTraining training;
  training.backward(1);
  training.update(ops::update_control(1e-2, 1));
  const at::Tensor weights = training.flat->weights().clone();
  std::map<std::string, at::Tensor> before;
  for (const auto& [name, buffer] : training.optimizer->buffers()) {
    before[name] = buffer.values.clone();
  }
  training.flat->gradients().fill_(NAN);
  training.update(ops::update_control(1e-2, 2, -1.0));
  EXPECT_TRUE(training.flat->weights().equal(weights));
  for (const auto& [name, buffer] : training.optimizer->buffers()) {
    EXPECT_TRUE(buffer.values.equal(before.at(name))) << name;
  }
}

TEST(MuonOptimizer, WithAllBlocksFrozenTheRestTrains) {
  MuonTraining training(at::kFloat, /*freeze_layers=*/2);
  const at::Tensor head = training.model->named_parameters()["head"].clone();
  training.backward(1);
  training.update(ops::update_control(1e-2, 1));
  EXPECT_FALSE(training.model->named_parameters()["head"].equal(head));
}

TEST(MuonOptimizer, RefusesAdapters) {
  ModelConfig config = grouped_model();
  config.lora.rank = 2;
  nn::Transformer model = tiny_model(config);
  const auto flat = std::make_shared<FlatParameters>(model, at::kCPU, at::kFloat);
  EXPECT_THROW(make_optimizer(muon_config(), flat), c10::Error);
}

}  // namespace
}  // namespace stablemask
