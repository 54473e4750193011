#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <set>

#include "stablemask/base/error.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/load.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::losses_of;
using testing::quiet_options;
using testing::stop_after;
using testing::tensors_of;
using testing::tiny_json;
using testing::TinyCorpus;
using testing::train;

/// A source with a context of 16 and 2 heads of 8.
class FinetuneTest : public testing::TinyRunTest {
 protected:
  void SetUp() override {
    train_source({});
    file_ = tiny_json(*corpus_, folder_ / "tuned");
    file_.erase("model");
    file_["train"]["init_from"] = source_.train.out;
  }

  void train_source(const std::vector<std::string>& overrides, int64_t steps = 40) {
    json file = tiny_json(*corpus_, folder_ / "source");
    file["train"]["steps"] = steps;
    source_ = parse_config(file.dump(), "source", overrides);
    std::filesystem::remove_all(source_.train.out);
    train(source_);
  }
  Config load(const json& file, const RunOptions& options = quiet_options()) {
    testing::write_file(folder_ / "finetune.json", file.dump());
    return load_finetune_config(folder_ / "finetune.json", {}, options);
  }
  /// What loading logs.
  std::string logged(const json& file, bool quiet = false) {
    ::testing::internal::CaptureStderr();
    RunOptions options;
    options.quiet = quiet;
    load(file, options);
    return ::testing::internal::GetCapturedStderr();
  }
  std::string refusal(const json& file) {
    try {
      load(file);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  }
  /// NLL per token of the validation text under the source's weights.
  double source_loss(const std::vector<std::string>& overrides) const {
    LoadedModel loaded =
        load_model(source_.train.out, {.device = DeviceKind::kCpu, .overrides = overrides});
    const EvalOptions options = eval_options(loaded.config, loaded.tokenizer);
    const Perplexity result = evaluate(loaded.model, Shard::open(corpus_->valid), options);
    return result.nll / static_cast<double>(result.tokens);
  }
  /// Validation loss of a finetuning run with this model section that changes no weight.
  double loss_at_start(const json& model) {
    json file = file_;
    file["model"] = model;
    file["train"]["steps"] = 1;
    file["optimizer"]["lr"] = 0;
    const Config config = load(file);
    std::filesystem::remove_all(config.train.out);
    return train(config).valid_loss;
  }

  Config source_;
  json file_;
};

TEST_F(FinetuneTest, StartsFromTheCheckpointsWeights) {
  const Config config = load(file_);
  EXPECT_EQ(config.model.channels, 16);
  train(config);
  const std::vector<double> before = losses_of(source_.train.out);
  const std::vector<double> after = losses_of(config.train.out);
  EXPECT_NEAR(after.front(), before.back(), 0.3);
  EXPECT_LT(after.front(), before.front() - 2.0);
  EXPECT_LT(after.back(), after.front());
}

TEST_F(FinetuneTest, FrozenPrefixStaysBitForBit) {
  file_["train"]["freeze_layers"] = 1;
  const Config config = load(file_);
  train(config);
  const auto before = tensors_of(source_.train.out), after = tensors_of(config.train.out);
  std::set<std::string> unchanged;
  for (const auto& [name, bytes] : after) {
    if (before.at(name) == bytes) unchanged.insert(name.substr(0, name.find('.', 7)));
    if (name.rfind("m.", 0) == 0) {
      EXPECT_NE(name.substr(0, 10), "m.blocks.0") << "no moments of a frozen block";
      EXPECT_NE(name, "m.embedding");
    }
  }
  EXPECT_EQ(unchanged, (std::set<std::string>{"blocks.0", "embedding"}));
  size_t trained = 0;
  for (const auto& [name, bytes] : after) trained += name.rfind("blocks.1.", 0) == 0;
  EXPECT_GT(trained, 0u);
}

TEST_F(FinetuneTest, ResumesWithoutItsSource) {
  Config config = load(file_);
  RunOptions options = quiet_options();
  options.on_step = stop_after(5, SIGTERM);
  EXPECT_EQ(train(config, options).step, 5);
  request_stop(0);
  std::filesystem::remove_all(source_.train.out);
  EXPECT_TRUE(train(load(file_)).finished);
  // The newest checkpoint is damaged: the one before has the same model.
  file_["train"]["steps"] = 14;
  const std::string newest = resolve_checkpoint(config.train.out) + "/config.json";
  testing::write_file(newest, "{}");
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(train(load(file_)).finished);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("config.json"), std::string::npos);
}

TEST_F(FinetuneTest, AnotherModelIsRefused) {
  file_["model"] = {{"channels", 32}, {"heads", 2}};
  const std::string said = refusal(file_);
  EXPECT_NE(said.find("/model/channels: 32 here, 16 in the checkpoint"), std::string::npos) << said;
  EXPECT_EQ(said.find("/model/heads"), std::string::npos) << "the same as the checkpoint's";
  file_.erase("model");
  file_["train"].erase("init_from");
  EXPECT_NE(refusal(file_).find("/train/init_from"), std::string::npos);
}

TEST_F(FinetuneTest, StatedModelFieldsReplaceTheSources) {
  file_["model"] = {{"window", 8}, {"channels", 16}, {"stable_mask", {{"p_base", -1}}}};
  const Config config = load(file_);
  EXPECT_EQ(config.model.channels, 16);
  EXPECT_EQ(config.model.window, 8);
  EXPECT_EQ(config.model.stable_mask.p_base.values, std::vector<double>{-1});
  EXPECT_EQ(config.model.stable_mask.mask_length.length, 16);
  const std::string said = logged(file_);
  EXPECT_NE(said.find("  /model/window: 0 -> 8\n"), std::string::npos) << said;
  EXPECT_NE(said.find("  /model/stable_mask/p_base: 0.0 -> -1.0\n"), std::string::npos) << said;
  EXPECT_EQ(said.find("channels"), std::string::npos) << said;
  EXPECT_EQ(logged(file_, /*quiet=*/true), "");
  file_.erase("model");
  EXPECT_EQ(logged(file_), "");
}

TEST_F(FinetuneTest, AMaskOnACausalSourceStartsAsEvalWithTheSameOverrides) {
  train_source({"model.stable_mask=false", "model.stable_mask.gamma=slopes",
                "model.stable_mask.beyond=none"});
  const double causal = source_loss({});
  EXPECT_NEAR(loss_at_start(json::object()), causal, 1e-6);
  const double masked = source_loss({"model.stable_mask=true"});
  EXPECT_GT(std::abs(masked - causal), 1e-4);
  EXPECT_NEAR(loss_at_start({{"stable_mask", true}}), masked, 1e-6);
  const double other =
      source_loss({"model.stable_mask=true", "model.stable_mask.gamma=0.25", "model.window=5",
                   "model.rope_theta=300", "model.stable_mask.mask_length=infinite"});
  EXPECT_GT(std::abs(masked - other), 1e-4);
  EXPECT_NEAR(loss_at_start({{"stable_mask",
                              {{"enabled", true}, {"gamma", 0.25}, {"mask_length", "infinite"}}},
                             {"window", 5},
                             {"rope_theta", 300}}),
              other, 1e-6);
}

TEST_F(FinetuneTest, AMaskThatIsTurnedOnHasTheDefaults) {
  train_source({"model.stable_mask=false", "model.stable_mask.gamma=slopes",
                "model.stable_mask.beyond=none"},
               1);
  file_["train"]["context"] = 32;
  EXPECT_EQ(logged(file_), "") << "the mask stays off";
  file_["model"] = {{"stable_mask", true}};
  const StableMaskConfig mask = load(file_).model.stable_mask;
  EXPECT_EQ(mask.gamma.value.values, std::vector<double>{1});
  EXPECT_EQ(mask.mask_length.length, 32);
  EXPECT_EQ(mask.beyond, BeyondMask::kInfinite);
  const std::string said = logged(file_);
  EXPECT_NE(said.find("  /model/stable_mask/enabled: false -> true\n"), std::string::npos) << said;
  EXPECT_NE(said.find("  /model/stable_mask/gamma: \"slopes\" -> 1.0\n"), std::string::npos)
      << said;
}

TEST_F(FinetuneTest, GammaAutoFollowsThePositionEncoding) {
  file_["model"] = {{"stable_mask", {{"gamma", "auto"}}}};
  EXPECT_EQ(load(file_).model.stable_mask.gamma.kind, GammaSpec::Kind::kValue) << "RoPE's";
  file_["model"]["position"] = "alibi";
  EXPECT_EQ(load(file_).model.stable_mask.gamma.kind, GammaSpec::Kind::kSlopes);
  train_source({"model.position=alibi"}, 1);
  file_["model"].erase("position");
  EXPECT_EQ(load(file_).model.stable_mask.gamma.kind, GammaSpec::Kind::kSlopes) << "the source's";
}

TEST_F(FinetuneTest, ALearnableMaskStartsFromItsConfig) {
  const json mask = {{"learnable", true}, {"gamma", 0.25}, {"p_base", -0.5}};
  EXPECT_NEAR(loss_at_start({{"stable_mask", mask}}),
              source_loss({"model.stable_mask.gamma=0.25", "model.stable_mask.p_base=-0.5"}), 1e-6);
  file_["model"]["stable_mask"] = mask;
  file_["train"]["steps"] = 3;
  const Config config = load(file_);
  train(config);  // resumes after step 1
  EXPECT_EQ(tensors_of(config.train.out).size(),
            3 * (tensors_of(source_.train.out).size() / 3 + 4));
}

TEST_F(FinetuneTest, ALearnedMaskKeepsItsValues) {
  train_source({"model.stable_mask.learnable=true"}, 1);
  EXPECT_EQ(refusal(file_), "");
  for (const std::string field : {"gamma", "p_base"}) {
    file_["model"] = {{"stable_mask", {{field, 0.5}}}};
    const std::string said = refusal(file_);
    EXPECT_NE(said.find("/model/stable_mask/" + field + ": was learned by "), std::string::npos)
        << said;
  }
  file_["model"] = {{"stable_mask", {{"learnable", false}}}};
  EXPECT_NE(refusal(file_).find("/model/stable_mask/learnable: false here, true in the checkpoint"),
            std::string::npos);
  file_["model"] = {{"stable_mask", false}};
  EXPECT_NE(refusal(file_).find("/model/stable_mask/enabled: false here"), std::string::npos);
}

TEST_F(FinetuneTest, FieldsThatNeedOtherWeightsAreRefusedByName) {
  const std::vector<std::pair<std::string, json>> fields = {
      {"layers", 3},       {"heads", 4},       {"kv_heads", 1},   {"head_dim", 4},
      {"ffn_hidden", 64},  {"ffn", "gelu"},    {"norm", "layer"}, {"qk_norm", true},
      {"tied_head", true}, {"vocab_size", 512}};
  for (const auto& [field, value] : fields) {
    file_["model"] = {{"window", 8}, {field, value}};
    const std::string said = refusal(file_);
    EXPECT_NE(said.find("finetune.json:"), std::string::npos) << said;
    EXPECT_NE(said.find("/model/" + field + ": " + value.dump() + " here, "), std::string::npos)
        << said;
    EXPECT_EQ(said.find("/model/window"), std::string::npos) << "is no reason: " << said;
  }
  file_["model"] = {{"preset", "71m"}};
  EXPECT_NE(refusal(file_).find("/model/preset: \"71m\" here, \"\" in the checkpoint"),
            std::string::npos);
  file_["model"] = {{"vocab_size", 0}};
  EXPECT_EQ(load(file_).model.vocab_size, 400) << "0 is the tokenizer's, as the source's";
}

TEST_F(FinetuneTest, AContextBeyondTheMaskLengthSaysWhatItsRowsDo) {
  file_["train"]["context"] = 32;
  EXPECT_EQ(load(file_).model.stable_mask.mask_length.length, 16) << "the source's";
  std::string said = logged(file_);
  EXPECT_EQ(said,
            "stablemask: train.context 32 exceeds the mask length 16: rows from 16 on have the "
            "pseudo mass of an infinite mask length; --set model.stable_mask.mask_length=context "
            "stretches the mask over the context\n");
  EXPECT_EQ(logged(file_, /*quiet=*/true), "");
  file_["model"]["stable_mask"] = {{"beyond", "none"}};
  said = logged(file_, /*quiet=*/true);
  EXPECT_NE(said.find("warning: train.context 32 exceeds"), std::string::npos) << said;
  EXPECT_NE(said.find("have no pseudo mass"), std::string::npos) << said;
  file_["model"]["stable_mask"] = {{"mask_length", "context"}};
  EXPECT_EQ(load(file_).model.stable_mask.mask_length.length, 32) << "the new context";
  EXPECT_EQ(logged(file_).find("exceeds"), std::string::npos);
  file_["model"]["stable_mask"] = false;
  EXPECT_EQ(logged(file_).find("exceeds"), std::string::npos);
}

TEST_F(FinetuneTest, AResumedRunComparesWithItsOwnCheckpoint) {
  file_["model"] = {{"window", 8}};
  file_["train"]["steps"] = 2;
  train(load(file_));
  std::filesystem::remove_all(source_.train.out);
  file_["train"]["steps"] = 4;
  EXPECT_EQ(logged(file_), "") << "nothing differs from its own checkpoint";
  const Config config = load(file_);
  EXPECT_EQ(config.model.window, 8);
  EXPECT_TRUE(train(config).finished);
  file_["model"] = {{"window", 4}};
  try {
    train(load(file_));
    ADD_FAILURE() << "resumed with another window";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("/model/window: 8 -> 4"), std::string::npos)
        << error.what();
  }
}

TEST_F(FinetuneTest, AnotherTokenizerIsRefused) {
  const TinyCorpus other("Something else altogether .");
  file_["data"]["train"] = {other.train};
  file_["data"]["valid"] = other.valid;
  file_["data"]["tokenizer"] = other.tokenizer;
  const Config config = load(file_);
  EXPECT_THROW(train(config), DataError);
  EXPECT_FALSE(std::filesystem::exists(config.train.out));
}

}  // namespace
}  // namespace stablemask
