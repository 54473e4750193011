#include "stablemask/infer/inspect.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "tests/data/tiny_corpus.h"
#include "tests/infer/literal_model.h"
#include "tests/infer/text_shard.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::Literal;
using testing_models::LiteralHead;
using testing_models::Row;
using testing_models::tiny_config;
using testing_models::tiny_model;

constexpr int32_t kEos = 2;
constexpr int64_t kTokens = 1150;

int64_t token_at(int64_t i) { return (i * i * 7 + i * 3 + i / 11) % 50; }

double sum(const Row& values) {
  double total = 0;
  for (const double value : values) total += value;
  return total;
}

/// The statistics of row i by their definitions.
struct RowFacts {
  RowFacts(const LiteralHead& head, int64_t i, int64_t first_column)
      : mask_ratio(sum(head.slots[i])),
        first_token(head.real[i][first_column]),
        heaviest_token(*std::max_element(head.real[i].begin(), head.real[i].end())) {
    for (const double w : head.real[i]) {
      const double p = w / sum(head.real[i]);
      if (p > 0) entropy -= p * std::log(p);
    }
  }
  double mask_ratio, entropy = 0, first_token, heaviest_token;
};

class InspectTest : public ::testing::Test {
 protected:
  InspectTest() {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < kTokens; ++i) ids.push_back(static_cast<int32_t>(token_at(i)));
    shard_ =
        std::make_unique<Shard>(testing::text_shard(folder_ / "text.shard", 50, ids, {0, 20, 31}));
  }
  void TearDown() override { request_stop(0); }

  static InspectOptions options_of(int64_t window, int64_t windows) {
    InspectOptions options;
    options.window = window;
    options.windows = windows;
    options.eos_id = kEos;
    return options;
  }

  /// EOS and the text from token `begin` on.
  static std::vector<int64_t> inputs(int64_t begin, int64_t length) {
    std::vector<int64_t> ids = {kEos};
    for (int64_t i = begin; i < begin + length - 1; ++i) ids.push_back(token_at(i));
    return ids;
  }

  /// Compares every statistic with the literal model's over windows that begin at these tokens.
  void expect_literal(const ModelConfig& config, const InspectOptions& options,
                      const std::vector<int64_t>& begins,
                      const std::vector<int64_t>& document_start = {}) {
    nn::Transformer model = tiny_model(config);
    if (config.stable_mask.learnable) spread_mask_parameters(model);
    const Inspection found = inspect(model, *shard_, options);
    ASSERT_EQ(found.windows, static_cast<int64_t>(begins.size()));
    EXPECT_EQ(found.window, options.window);
    std::vector<Literal> literal;
    for (const int64_t begin : begins) {
      literal.emplace_back(model, inputs(begin, options.window), document_start);
    }
    ASSERT_EQ(found.heads.size(), static_cast<size_t>(config.layers));
    for (size_t layer = 0; layer < found.heads.size(); ++layer) {
      ASSERT_EQ(found.heads[layer].size(), static_cast<size_t>(config.heads));
      for (size_t h = 0; h < found.heads[layer].size(); ++h) {
        SCOPED_TRACE("layer " + std::to_string(layer) + ", head " + std::to_string(h));
        expect_head(found.heads[layer][h], literal, layer, h);
      }
    }
    expect_hidden(found, literal);
  }

  static void spread_mask_parameters(nn::Transformer& model) {
    const at::NoGradGuard no_grad;
    for (auto& item : model->named_parameters()) {
      if (item.key().find("stable_mask") == std::string::npos) continue;
      item.value().add_(at::arange(item.value().numel()) * 0.3);
    }
  }

  static void expect_head(const HeadStatistics& found, const std::vector<Literal>& literal,
                          size_t layer, size_t h) {
    const auto windows = static_cast<double>(literal.size());
    const std::vector<int64_t>& starts = literal[0].starts;
    for (size_t i = 0; i < starts.size(); ++i) {
      double ratio = 0, entropy = 0, first = 0, heaviest = 0;
      for (const Literal& window : literal) {
        const RowFacts facts(window.layers[layer][h], static_cast<int64_t>(i), starts[i]);
        ratio += facts.mask_ratio / windows;
        entropy += facts.entropy / windows;
        first += facts.first_token / windows;
        heaviest += facts.heaviest_token / windows;
      }
      ASSERT_NEAR(found.mask_ratio[i], ratio, 1e-5) << "row " << i;
      ASSERT_NEAR(found.entropy[i], entropy, 3e-5) << "row " << i;
      ASSERT_NEAR(found.first_token[i], first, 1e-5) << "row " << i;
      ASSERT_NEAR(found.heaviest_token[i], heaviest, 1e-5) << "row " << i;
    }
    ASSERT_EQ(found.mask_ratio.size(), starts.size());
  }

  static void expect_hidden(const Inspection& found, const std::vector<Literal>& literal) {
    ASSERT_EQ(found.hidden.size(), literal[0].hidden.size());
    for (size_t point = 0; point < found.hidden.size(); ++point) {
      SCOPED_TRACE("point " + std::to_string(point));
      std::vector<at::Tensor> all;
      for (const Literal& window : literal) all.push_back(window.hidden[point]);
      const at::Tensor squares = at::stack(all).square();  // [windows,T,C]
      const at::Tensor norms = squares.sum(2).sqrt();
      const HiddenStatistics& hidden = found.hidden[point];
      const at::Tensor by_position = norms.mean(0);
      for (size_t i = 0; i < hidden.norm.size(); ++i) {
        ASSERT_NEAR(hidden.norm[i], by_position[i].item<double>(), 1e-4);
      }
      EXPECT_NEAR(hidden.norm_max, norms.max().item<double>(), 1e-4);
      EXPECT_NEAR(norms.select(1, hidden.norm_max_position).max().item<double>(), hidden.norm_max,
                  1e-4);
      const at::Tensor shares = squares.amax(2) / squares.sum(2);
      EXPECT_NEAR(hidden.channel_share, shares.mean().item<double>(), 1e-5);
      EXPECT_NEAR(hidden.channel_share_max, shares.max().item<double>(), 1e-5);
      const at::Tensor energy = squares.sum(1).sum(0);
      EXPECT_EQ(hidden.top_channel, energy.argmax().item<int64_t>());
      EXPECT_NEAR(hidden.top_channel_share, (energy.max() / energy.sum()).item<double>(), 1e-5);
    }
  }

  /// Every map of `tokens` against the literal model, slot by slot.
  static void expect_literal_maps(const ModelConfig& config, const std::vector<int64_t>& tokens) {
    nn::Transformer model = tiny_model(config);
    const Literal literal(model, tokens);
    const auto length = static_cast<int64_t>(tokens.size());
    int64_t count = 0;
    attention_maps(model, tokens, [&](const AttentionMap& map) {
      ASSERT_EQ(map.layer * config.heads + map.head, count++);
      const LiteralHead& head = literal.layers[map.layer][map.head];
      ASSERT_EQ(map.weights.sizes(), at::IntArrayRef({length, length}));
      for (int64_t i = 0; i < length; ++i) {
        double rest = sum(head.slots[i]);
        for (int64_t j = 0; j < length; ++j) {
          const size_t slot = static_cast<size_t>(j - i - 1);
          double expected = 0;
          if (j <= i) {
            expected = head.real[i][j];
          } else if (slot < head.slots[i].size()) {
            expected = head.slots[i][slot];
            rest -= expected;
          }
          ASSERT_NEAR(map.weights[i][j].item<double>(), expected, 1e-5) << i << ", " << j;
        }
        ASSERT_NEAR(map.rest[i].item<double>(), rest, 1e-5) << i;
      }
    });
    EXPECT_EQ(count, config.layers * config.heads);
  }

  testing::TemporaryFolder folder_;
  std::unique_ptr<Shard> shard_;
};

TEST_F(InspectTest, StatisticsAreThoseOfTheLiteralModelWithRope) {
  expect_literal(tiny_config(Position::kRope, true, 24), options_of(24, 3), {0, 15 * 24, 31 * 24});
}

TEST_F(InspectTest, StatisticsAreThoseOfTheLiteralModelWithAlibiAndSlopes) {
  ModelConfig config = tiny_config(Position::kAlibi, true, 40);
  config.stable_mask.p_base.values = {-0.5};
  expect_literal(config, options_of(24, 2), {0, 23 * 24});
}

TEST_F(InspectTest, StatisticsAreThoseOfTheLiteralModelForEveryFamily) {
  for (const testing_models::Family& family : testing_models::kFamilies) {
    SCOPED_TRACE(family.name);
    ModelConfig config = tiny_config(Position::kRope, true, 12);
    family.change(config);
    expect_literal(config, options_of(16, 1), {0});
  }
}

TEST_F(InspectTest, GroupedHeadsUseTheKeysOfTheirGroup) {
  ModelConfig config = tiny_config(Position::kRope, true, 16);
  config.kv_heads = 2;
  expect_literal(config, options_of(16, 1), {0});
}

TEST_F(InspectTest, RowsBeyondTheMaskLength) {
  ModelConfig config = tiny_config(Position::kRope, true, 10);
  for (const BeyondMask beyond : {BeyondMask::kInfinite, BeyondMask::kNone}) {
    config.stable_mask.beyond = beyond;
    expect_literal(config, options_of(30, 1), {0});
    expect_literal_maps(config, inputs(3, 14));
    nn::Transformer model = tiny_model(config);
    const HeadStatistics head = inspect(model, *shard_, options_of(30, 1)).heads[0][0];
    EXPECT_EQ(head.mask_ratio[9], 0.0);
    EXPECT_EQ(head.mask_ratio[10] > 0, beyond == BeyondMask::kInfinite);
  }
}

TEST_F(InspectTest, InfinitelyManySlotsOfEqualWeightTakeEverything) {
  ModelConfig config = tiny_config(Position::kRope, true, 10);
  config.stable_mask.gamma = {GammaSpec::Kind::kValue, {{0.0}}};
  nn::Transformer model = tiny_model(config);
  const HeadStatistics head = inspect(model, *shard_, options_of(12, 1)).heads[1][2];
  EXPECT_EQ(head.mask_ratio[10], 1.0);
  EXPECT_EQ(head.heaviest_token[10], 0.0);
  EXPECT_GT(head.entropy[10], 0.0) << "of the normalised weights";
  attention_maps(model, inputs(0, 12), [](const AttentionMap& map) {
    EXPECT_EQ(map.rest[10].item<double>(), 1.0);
    EXPECT_EQ(map.weights[10].abs().sum().item<double>(), 0.0);
  });
}

TEST_F(InspectTest, AnInfiniteMaskLengthAndThatOfTheWindow) {
  ModelConfig config = tiny_config(Position::kAlibi, true);
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kInfinite, 0};
  expect_literal(config, options_of(12, 1), {0});
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kSequence, 0};
  expect_literal(config, options_of(12, 1), {0});
}

TEST_F(InspectTest, LearnedMasksDifferBetweenHeads) {
  ModelConfig config = tiny_config(Position::kRope, true, 16);
  config.stable_mask.learnable = true;
  expect_literal(config, options_of(16, 1), {0});
}

TEST_F(InspectTest, AWindowOfKeysHidesTheFirstToken) {
  ModelConfig config = tiny_config(Position::kRope, true, 24);
  config.window = 5;
  expect_literal(config, options_of(24, 1), {0});
  nn::Transformer model = tiny_model(config);
  const Inspection found = inspect(model, *shard_, options_of(24, 1));
  EXPECT_GT(found.heads[0][0].first_token[4], 0.0);
  EXPECT_EQ(found.heads[0][0].first_token[5], 0.0);
}

TEST_F(InspectTest, DocumentsBeginWithTheirOwnFirstTokenAndMask) {
  InspectOptions options = options_of(40, 1);
  options.document_mask = true;
  // Input column c is token c − 1; EOS before the first document stands alone.
  std::vector<int64_t> starts = {0};
  for (int64_t c = 1; c < 40; ++c) starts.push_back(c < 21 ? 1 : c < 32 ? 21 : 32);
  expect_literal(tiny_config(Position::kRope, true, 30), options, {0}, starts);
}

TEST_F(InspectTest, ManyRowsAreComputedInBlocks) {
  ModelConfig config = tiny_config(Position::kAlibi, true, 1100);
  config.layers = 1;
  config.heads = 2;
  expect_literal(config, options_of(1100, 4), {0});
}

TEST_F(InspectTest, ACausalModelThrowsNoWeightAway) {
  const ModelConfig config = tiny_config(Position::kRope, false);
  expect_literal(config, options_of(20, 2), {0, 28 * 20});
  nn::Transformer model = tiny_model(config);
  const Inspection found = inspect(model, *shard_, options_of(20, 2));
  for (const HeadStatistics& head : found.heads[1]) {
    EXPECT_EQ(head.mask_ratio, std::vector<double>(20, 0.0));
    EXPECT_EQ(head.heaviest_token[0], 1.0);
    EXPECT_FALSE(head.gamma.has_value());
    EXPECT_TRUE(head.log_mass.empty());
  }
}

TEST_F(InspectTest, DescribesTheMaskOfEachHead) {
  ModelConfig config = tiny_config(Position::kRope, true, 16);
  config.stable_mask.gamma = {GammaSpec::Kind::kValue, {{0.5, 1.0, 0.0, 2.0}}};
  config.stable_mask.p_base.values = {-1.0};
  nn::Transformer model = tiny_model(config);
  const Inspection found = inspect(model, *shard_, options_of(16, 1));
  EXPECT_EQ(found.heads[1][3].gamma, 2.0);
  EXPECT_EQ(found.heads[1][3].p_base, -1.0);
  // gamma 0: 15 − i slots of score −1.
  for (int64_t i = 0; i < 15; ++i) {
    EXPECT_NEAR(found.heads[0][2].log_mass[i], -1.0 + std::log(15.0 - i), 1e-6);
  }
  EXPECT_EQ(found.heads[0][2].log_mass[15], -HUGE_VAL);
}

TEST_F(InspectTest, MapsHoldEveryTokenAndPseudoSlot) {
  expect_literal_maps(tiny_config(Position::kRope, true, 40), inputs(0, 18));
  expect_literal_maps(tiny_config(Position::kAlibi, true, 12), inputs(7, 12));
  expect_literal_maps(tiny_config(Position::kAlibi, false), inputs(7, 12));
  ModelConfig config = tiny_config(Position::kAlibi, true);
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kInfinite, 0};
  expect_literal_maps(config, inputs(3, 9));
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kFixed, 5};
  config.stable_mask.beyond = BeyondMask::kNone;
  expect_literal_maps(config, inputs(3, 9));
}

TEST_F(InspectTest, MapsAndStatisticsOfOneTextAgree) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true, 24));
  const Inspection found = inspect(model, *shard_, options_of(24, 1));
  const std::vector<int64_t> tokens = first_inputs(*shard_, kEos, 24);
  EXPECT_EQ(tokens, inputs(0, 24));
  attention_maps(model, tokens, [&](const AttentionMap& map) {
    const at::Tensor kept = map.weights.tril().sum(1).to(at::kDouble);
    const at::Tensor thrown = (map.weights.triu(1).sum(1) + map.rest).to(at::kDouble);
    const std::vector<double>& ratio = found.heads[map.layer][map.head].mask_ratio;
    EXPECT_LT((kept + thrown - 1).abs().max().item<double>(), 1e-5);
    EXPECT_LT((thrown - at::tensor(ratio)).abs().max().item<double>(), 1e-5);
  });
}

TEST_F(InspectTest, FirstInputsOfAShortText) {
  EXPECT_EQ(first_inputs(*shard_, kEos, 1), std::vector<int64_t>{kEos});
  EXPECT_EQ(first_inputs(*shard_, kEos, 10 * kTokens).size(), static_cast<size_t>(kTokens + 1));
}

TEST_F(InspectTest, ProgressEndsAtTheTokensOfAllWindows) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  InspectOptions options = options_of(10, 3);
  std::vector<int64_t> seen;
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 30);
    seen.push_back(done);
  };
  inspect(model, *shard_, options);
  EXPECT_EQ(seen, (std::vector<int64_t>{5, 10, 15, 20, 25, 30}));
}

template <class Error, class Work>
std::string message_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no such error";
  return "";
}

TEST_F(InspectTest, AStopSignalEndsItWithoutAResult) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  InspectOptions options = options_of(10, 3);
  options.progress = [](int64_t done, int64_t) {
    EXPECT_LE(done, 15);
    if (done == 15) request_stop(SIGINT);
  };
  const auto work = [&] { inspect(model, *shard_, options); };
  EXPECT_NE(message_of<Stopped>(work).find("stopped by Ctrl-C while inspecting"),
            std::string::npos);
  EXPECT_NE(message_of<Stopped>([&] { attention_maps(model, {1, 2}, [](const auto&) {}); }), "");
}

TEST_F(InspectTest, RefusesWhatItCannotInspect) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  const auto with = [&](int64_t window, int64_t windows) {
    return [&, window, windows] { inspect(model, *shard_, options_of(window, windows)); };
  };
  EXPECT_NE(message_of<DataError>(with(kTokens + 1, 2))
                .find("text.shard: 1150 tokens, fewer than one window of 1151"),
            std::string::npos);
  EXPECT_NE(message_of<ConfigError>(with(0, 2)).find("must be at least 1"), std::string::npos);
  EXPECT_NE(message_of<ConfigError>(with(8, 0)).find("must be at least 1"), std::string::npos);
  const auto map_of = [&](const std::vector<int64_t>& tokens) {
    return message_of<ConfigError>(
        [&] { attention_maps(model, tokens, [](const AttentionMap&) {}); });
  };
  EXPECT_NE(map_of({}).find("at least one token"), std::string::npos);
  EXPECT_NE(map_of({3, 50}).find("id 50 is outside the vocabulary of 50"), std::string::npos);
}

TEST_F(InspectTest, ActivationsThatOverflowAreAnError) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  {
    const at::NoGradGuard no_grad;
    model->named_parameters()["blocks.1.ffn.down"].fill_(3e38);
  }
  EXPECT_NE(message_of<NonFiniteError>([&] {
              inspect(model, *shard_, options_of(8, 1));
            }).find("hidden states after 2 of 2 blocks: not finite"),
            std::string::npos);
  {
    const at::NoGradGuard no_grad;
    model->named_parameters()["blocks.0.attention.qkv"].fill_(1e30);
  }
  EXPECT_NE(message_of<NonFiniteError>([&] {
              attention_maps(model, {1, 2, 3}, [](const AttentionMap&) {});
            }).find("attention of layer 0: not finite"),
            std::string::npos);
}

}  // namespace
}  // namespace stablemask
