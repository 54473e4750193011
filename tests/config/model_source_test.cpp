#include "stablemask/config/model_source.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "tests/config/config_problems.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

/// Every field that the tests look at differs from its default.
ModelConfig source_model() {
  return parse_config(R"({
    "model": {"layers": 3, "channels": 48, "heads": 4, "position": "alibi", "window": 7,
              "stable_mask": {"mask_length": 16, "p_base": -1, "beyond": "none"}}})",
                      "source")
      .model;
}

class ModelSourceTest : public ::testing::Test {
 protected:
  Config load(const std::string& text, const Strings& overrides = {}) {
    std::ofstream(path_) << text;
    return load_config_with_model(path_, overrides, [&](const Config& draft) {
      draft_ = draft;
      return source_model();
    });
  }
  /// The message without the path of the file.
  std::string problem(const std::string& text, const Strings& overrides = {}) {
    draft_ = Config();
    try {
      load(text, overrides);
    } catch (const ConfigError& error) {
      std::string message = error.what();
      const size_t at = message.find(path_);
      return at == std::string::npos ? message : message.replace(at, path_.size(), "c.json");
    }
    return "";
  }

  const Scratch folder_;
  const std::string path_ = folder_ / "config.json";
  Config draft_;
};

TEST_F(ModelSourceTest, StatedFieldsTakePrecedenceOverTheSourcesModel) {
  const Config config =
      load(R"({"model": {"window": 9}, "train": {"context": 64, "init_from": "there"},
               "schedule": {"warmup_steps": 1}})",
           {"model.stable_mask.p_base=-2"});
  EXPECT_EQ(draft_.train.init_from, "there");
  EXPECT_EQ(config.model.layers, 3);
  EXPECT_EQ(config.model.window, 9);
  EXPECT_EQ(config.model.stable_mask.p_base.values, std::vector<double>{-2});
  EXPECT_EQ(config.model.stable_mask.mask_length.length, 16);
  EXPECT_EQ(config.model.stable_mask.beyond, BeyondMask::kNone);
  EXPECT_EQ(config.eval.window, 64) << "resolved";
  Config expected = config;
  expected.model = source_model();
  expected.model.window = 9;
  expected.model.stable_mask.p_base = {{-2}};
  EXPECT_EQ(dump_config(config), dump_config(expected));
}

TEST_F(ModelSourceTest, ValuesThatStandForAnotherFieldFollowTheResult) {
  const std::string text =
      R"({"model": {"stable_mask": {"gamma": "auto", "mask_length": "context"}},
          "train": {"context": 64}, "schedule": {"warmup_steps": 1}})";
  Config config = load(text);
  EXPECT_EQ(config.model.stable_mask.gamma.kind, GammaSpec::Kind::kSlopes) << "ALiBi's";
  EXPECT_EQ(config.model.stable_mask.mask_length.length, 64);
  config = load(text, {"model.position=rope"});
  EXPECT_EQ(config.model.stable_mask.gamma.value.values, std::vector<double>{1});
}

// With the default of 8 heads the list would be refused.
TEST_F(ModelSourceTest, ContradictionsAreThoseOfTheResult) {
  EXPECT_EQ(problem(R"({"model": {"stable_mask": {"gamma": [1, 2, 3, 4]}}})"), "");
  EXPECT_EQ(problem(R"({"model": {"stable_mask": {"gamma": [1, 2]}}})"),
            "c.json:1:37: /model/stable_mask/gamma: 2 numbers for 4 heads; give one number, or one "
            "per head");
  EXPECT_EQ(problem("{}", {"train.freeze_layers=4", "train.init_from=x"}),
            "--set train.freeze_layers=4: /train/freeze_layers: 4 is more than model.layers, 3");
}

TEST_F(ModelSourceTest, WrongValuesAreReportedBeforeTheSourceIsAskedFor) {
  const std::string message = problem(R"({"model": {"window": -1}, "train": {"stepz": 1}})");
  EXPECT_NE(message.find("c.json:1:22: /model/window: expected"), std::string::npos) << message;
  EXPECT_NE(message.find("/train/stepz"), std::string::npos) << message;
  EXPECT_EQ(draft_.model.window, 0);
}

TEST_F(ModelSourceTest, AnOlderFileDoesNotStateWhatItsVersionLeftOut) {
  const Config config = load(R"({"version": 1, "schedule": {"warmup_steps": 1}})",
                             {"model.stable_mask.beyond=infinite"});
  EXPECT_EQ(config.model.stable_mask.beyond, BeyondMask::kInfinite);
  EXPECT_EQ(load(R"({"version": 1, "schedule": {"warmup_steps": 1}})").model.stable_mask.beyond,
            BeyondMask::kNone)
      << "the source's";
  const ModelConfig rope = parse_config("{}", "rope").model;
  const Config kept = load_config_with_model(path_, {}, [&](const Config&) { return rope; });
  EXPECT_EQ(kept.model.stable_mask.beyond, BeyondMask::kInfinite)
      << "the source's, not version 1's";
  EXPECT_EQ(kept.model.stable_mask.gamma.kind, GammaSpec::Kind::kValue);
}

}  // namespace
}  // namespace stablemask
