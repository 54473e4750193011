#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <stdexcept>
#include <string>

#include "stablemask/base/sha256.h"
#include "stablemask/nn/model.h"
#include "stablemask/optim/flat_parameters.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::tiny_config;
using Values = std::map<std::string, at::Tensor>;

/// With all kinds of initial values: adapters, a learnable mask, biases.
ModelConfig varied_config() {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.stable_mask.learnable = true;
  config.bias = BiasKind::kAll;
  config.lora.rank = 2;
  config.lora.targets = {"qkv", "down"};
  return config;
}

Values initial_values(const ModelConfig& config, uint64_t seed,
                      nn::InitScope scope = nn::InitScope::kAll) {
  Values values;
  nn::initial_weights(config, seed, scope, [&](const std::string& name, const at::Tensor& value) {
    EXPECT_TRUE(values.emplace(name, value.clone()).second) << name << " twice";
  });
  return values;
}

/// The formula, one parameter after another: a generator for each, seeded by its name.
at::Tensor expected(const nn::Parameter& parameter, const ModelConfig& config, uint64_t seed) {
  const std::string key = std::to_string(seed) + ":" + parameter.name;
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(
      std::stoull(sha256_hex(key.data(), key.size()).substr(0, 16), nullptr, 16));
  at::Tensor values = at::zeros(parameter.shape);
  const double bound = 1 / std::sqrt(static_cast<double>(values.size(-1)));
  switch (parameter.init) {
    case nn::Init::kNormal:
      return values.normal_(0, config.init_std, generator);
    case nn::Init::kResidualNormal:
      return values.normal_(
          0, config.init_std / std::sqrt(2.0 * static_cast<double>(config.layers)), generator);
    case nn::Init::kFanInUniform:
      return values.uniform_(-bound, bound, generator);
    case nn::Init::kOnes:
      return values.fill_(1);
    default:
      return values;
  }
}

/// Sets the number of LibTorch's threads for a while.
class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

TEST(InitialWeights, AreThoseOfTheFormulaWithAnyNumberOfThreads) {
  const ModelConfig config = varied_config();
  for (const int threads : {1, 3}) {
    const Threads these(threads);
    const Values values = initial_values(config, 7);
    size_t expected_count = 0;
    for (const nn::Parameter& parameter : nn::parameters(config)) {
      if (parameter.init == nn::Init::kConfig) continue;
      ++expected_count;
      ASSERT_TRUE(values.contains(parameter.name)) << parameter.name;
      EXPECT_TRUE(values.at(parameter.name).equal(expected(parameter, config, 7)))
          << parameter.name << ", " << threads << " threads";
    }
    EXPECT_EQ(values.size(), expected_count);
  }
}

TEST(InitialWeights, OfAdaptersAlone) {
  const Values all = initial_values(varied_config(), 7);
  const Values adapters = initial_values(varied_config(), 7, nn::InitScope::kAdapters);
  EXPECT_EQ(adapters.size(), 2u * 2 * 2);
  for (const auto& [name, value] : adapters) EXPECT_TRUE(value.equal(all.at(name))) << name;
}

/// With threads at work, which wait until the values made before are taken.
TEST(InitialWeights, AnErrorOfTheTakerEndsTheWork) {
  const Threads these(2);
  int taken = 0;
  const auto failing = [&](const std::string&, const at::Tensor&) {
    if (++taken == 2) throw std::runtime_error("no more room");
  };
  EXPECT_THROW(nn::initial_weights(varied_config(), 7, nn::InitScope::kAll, failing),
               std::runtime_error);
  EXPECT_EQ(taken, 2);
}

TEST(InitialWeights, OfAMovedModelAreThoseOfTheModel) {
  const ModelConfig config = varied_config();
  nn::Transformer on_host(config);
  on_host->init_weights(7);
  const Values values = [&] {
    Values copies;
    for (const auto& item : on_host->named_parameters()) copies[item.key()] = item.value().clone();
    return copies;
  }();
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    nn::Transformer model(config);
    FlatParameters flat(model, at::kCPU, type);
    EXPECT_FALSE(model->has_weights());
    init_weights(model, flat, 7);
    EXPECT_TRUE(model->has_weights());
    for (const auto& item : model->named_parameters()) {
      EXPECT_TRUE(item.value().equal(values.at(item.key()).to(type))) << item.key();
    }
    for (const auto& [name, master] : flat.master()) {
      EXPECT_TRUE(master.equal(values.at(name))) << name;
    }
  }
}

TEST(InitialWeights, AMovedModelWithoutWeightsHasThoseOfItsMask) {
  const ModelConfig config = varied_config();
  nn::Transformer on_host(config), model(config);
  const FlatParameters flat(model, at::kCPU, at::kFloat);
  const auto made = on_host->named_parameters();
  int64_t of_mask = 0;
  for (const auto& item : model->named_parameters()) {
    if (item.key().find("stable_mask") == std::string::npos) {
      EXPECT_EQ(item.value().abs().sum().item<double>(), 0) << item.key();
    } else {
      EXPECT_TRUE(item.value().equal(made[item.key()])) << item.key();
      ++of_mask;
    }
  }
  EXPECT_EQ(of_mask, 2 * config.layers);
}

}  // namespace
}  // namespace stablemask
