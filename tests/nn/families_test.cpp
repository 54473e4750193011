#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/nn/decoder.h"
#include "stablemask/nn/model.h"
#include "tests/infer/literal_model.h"
#include "tests/nn/models.h"

/// Options of other families of models. model_test.cpp compares them with plain ATen, too.
namespace stablemask {
namespace {

using testing_models::max_difference;
using testing_models::tiny_config;
using testing_models::tiny_model;
using testing_models::tokens;

/// In fp64, by the formulas of the papers.
TEST(Families, HiddenStatesOfEveryFamilyAreThoseOfTheLiteralModel) {
  for (const testing_models::Family& family : testing_models::kFamilies) {
    ModelConfig config = tiny_config(Position::kRope, true);
    family.change(config);
    nn::Transformer model = tiny_model(config);
    std::vector<int64_t> ids, starts(33, 0);
    for (int64_t i = 0; i < 33; ++i) ids.push_back((i * i * 7 + 3 * i) % 50);
    std::fill(starts.begin() + 9, starts.end(), 9);
    const testing_models::Literal literal(model, ids, starts);
    nn::ForwardArgs args;
    args.document_start = at::tensor(starts).view({1, 33});
    const at::NoGradGuard no_grad;
    const at::Tensor found = model->hidden(at::tensor(ids).view({1, 33}), args)[0];
    EXPECT_LT(max_difference(found, literal.hidden.back()),
              2e-5 * literal.hidden.back().abs().max().item<double>())
        << family.name;
  }
}

TEST(Families, ParametersOfBiasesHaveTheNamesOfLlama) {
  ModelConfig config = tiny_config(Position::kRope, true);
  const auto added = [&](BiasKind bias) {
    config.bias = bias;
    std::map<std::string, int64_t> external;
    for (const nn::Parameter& parameter : nn::parameters(config)) {
      if (!parameter.name.ends_with("_bias")) continue;
      EXPECT_FALSE(parameter.decays()) << parameter.name;
      for (const auto& [name, rows] : parameter.external) external[name] = rows;
    }
    return external;
  };
  config.layers = 1;
  config.kv_heads = 2;
  const std::string attention = "model.layers.0.self_attn.", ffn = "model.layers.0.mlp.";
  std::map<std::string, int64_t> expected;
  EXPECT_EQ(added(BiasKind::kNone), expected);
  expected = {{attention + "q_proj.bias", 32},
              {attention + "k_proj.bias", 16},
              {attention + "v_proj.bias", 16}};
  EXPECT_EQ(added(BiasKind::kQkv), expected);
  expected.insert({{attention + "o_proj.bias", 32},
                   {ffn + "gate_proj.bias", 40},
                   {ffn + "up_proj.bias", 40},
                   {ffn + "down_proj.bias", 32}});
  EXPECT_EQ(added(BiasKind::kAll), expected);
  const auto registered = nn::Transformer(config)->named_parameters();
  EXPECT_EQ(registered["blocks.0.attention.qkv_bias"].numel(), 64);
  nn::Transformer fresh(config);
  fresh->init_weights(1);
  EXPECT_EQ(fresh->named_parameters()["blocks.0.ffn.up_bias"].count_nonzero().item<int64_t>(), 0);
}

/// Positions are limited by the table; padding after them is not.
TEST(Families, LearnedPositionsRefuseLongerTexts) {
  ModelConfig config = tiny_config(Position::kLearned, true);
  EXPECT_THROW(nn::Transformer{config}, ConfigError) << "not resolved";
  config.learned_positions = 12;
  nn::Transformer model = tiny_model(config);
  const at::NoGradGuard no_grad;
  const at::Tensor full = model->logits(tokens(1, 12));
  EXPECT_THROW(model->logits(tokens(1, 13)), ConfigError);
  EXPECT_THROW(nn::KvCache(config, 1, 13, at::kFloat), ConfigError);
  nn::KvCache cache(config, 1, 12, at::kFloat);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 7}, {7, 5}}) {
    nn::ForwardArgs args;
    args.cached = {&cache, 0, first, count};
    const at::Tensor padded = at::constant_pad_nd(tokens(1, 12).narrow(1, first, count), {0, 4});
    const at::Tensor found = model->logits(padded, args)[0].narrow(0, 0, count);
    EXPECT_LT(max_difference(found, full[0].narrow(0, first, count)), 1e-4);
  }
}

/// Frequencies of pairs as computed, in fp32, by Hugging Face transformers 5.24.
struct FrequencyCase {
  double theta, magnitude;
  int64_t head_dim;
  RopeScaling scaling;
  std::vector<std::pair<int64_t, double>> expected;
};

TEST(RopeTables, FrequenciesAreThoseOfTransformers) {
  using Kind = RopeScaling::Kind;
  const std::vector<FrequencyCase> cases = {
      {500000,
       1.0,
       64,
       {Kind::kLlama3, 8, 8192, 1, 4},
       {{0, 1},
        {1, 0.663601279},
        {14, 0.00321144611},
        {15, 0.00137189368},
        {16, 0.000524846022},
        {17, 0.000178507791},
        {18, 7.78465546e-05},
        {19, 5.16590699e-05},
        {31, 3.7673226e-07}}},
      {10000,
       1.138629436111989,
       64,
       {.kind = Kind::kYarn, .factor = 4, .original_context = 4096},
       {{0, 1},
        {9, 0.0749894157},
        {10, 0.0562341288},
        {11, 0.039736785},
        {15, 0.00948851742},
        {22, 0.000547162897},
        {23, 0.000333380362},
        {24, 0.000250000012},
        {31, 3.33380376e-05}}},
      {1e6,
       1.5,
       128,
       {Kind::kYarn, 40, 32768, 1, 4, 16, 2, 1.5},
       {{0, 1},
        {20, 0.0133352149},
        {25, 0.00453158375},
        {26, 0.00365174143},
        {27, 0.00268189446},
        {33, 0.000305853755},
        {36, 4.79200426e-05},
        {37, 8.4955218e-06},
        {38, 6.84604902e-06},
        {63, 3.10234434e-08}}},
  };
  for (const FrequencyCase& test : cases) {
    ModelConfig config = tiny_config(Position::kRope, true);
    config.rope_theta = test.theta;
    config.head_dim = test.head_dim;
    config.rope_scaling = test.scaling;
    const auto [values, magnitude] = nn::rope_frequencies(config);
    EXPECT_DOUBLE_EQ(magnitude, test.magnitude);
    ASSERT_EQ(values.numel(), test.head_dim / 2);
    for (const auto& [pair, frequency] : test.expected) {
      EXPECT_NEAR(values[pair].item<double>() / frequency, 1, 1e-5) << pair;
    }
    const at::Tensor table = nn::RopeTables(config).from_start(300, at::kCPU);
    const auto [pair, frequency] = test.expected[1];
    const double cosine = table[299][pair].item<double>();
    EXPECT_NEAR(cosine, magnitude * std::cos(299 * values[pair].item<double>()), 1e-6);
  }
}

}  // namespace
}  // namespace stablemask
