#include "stablemask/infer/load.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/generate.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/ops/device.h"
#include "tests/data/tiny_corpus.h"

namespace stablemask {
namespace {

using testing::TinyCorpus;

constexpr const char* kConfig = R"({
  "model": {"vocab_size": 416, "layers": 2, "channels": 16, "heads": 2, "ffn_hidden": 32,
            "init_std": 0.3},
  "train": {"context": 32}, "eval": {"stride": 8}})";

/// Saves checkpoints of random weights with the tokenizer of the tiny corpus, whose 400 ids the
/// model pads to 416.
class LoadTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { corpus_ = new TinyCorpus(); }
  static void TearDownTestSuite() { delete corpus_; }

  /// Makes run/checkpoints/step-00000007; `change` may edit the weights first.
  void save(const std::vector<std::string>& overrides = {},
            const std::function<void(nn::Transformer&)>& change = {}) {
    const Config config = parse_config(kConfig, "test", overrides);
    model_ = nn::Transformer(config.model);
    model_->init_weights(3);
    at::NoGradGuard no_grad;
    if (change) change(model_);
    CheckpointContent content;
    content.step = 7;
    for (const auto& item : model_->named_parameters()) {
      content.model[item.key()] = {ElementType::kF32, item.value().sizes().vec(),
                                   item.value().const_data_ptr()};
    }
    content.optimizer = content.model;
    content.state_json = "{}";
    content.config_json = dump_config(config);
    content.tokenizer_model = tokenizer_;
    folder_ = save_checkpoint(run_ / "checkpoints", content, {});
  }

  /// Σ NLL of the corpus's validation text under the loaded model.
  static double nll_of(LoadedModel& loaded) {
    const EvalOptions options = eval_options(loaded.config, loaded.tokenizer);
    return evaluate(loaded.model, Shard::open(corpus_->valid), options).nll;
  }
  double nll_by(LoadOptions options) {
    options.device = DeviceKind::kCpu;
    LoadedModel loaded = load_model(folder_, options);
    return nll_of(loaded);
  }
  double nll_with(const std::vector<std::string>& overrides) {
    return nll_by(LoadOptions{.overrides = overrides});
  }

  /// The message of the error that loading must end with.
  template <class Error>
  std::string refusal(const std::vector<std::string>& overrides = {},
                      const std::string& mask_length = "") {
    try {
      load_model(folder_,
                 {.device = DeviceKind::kCpu, .overrides = overrides, .mask_length = mask_length});
    } catch (const Error& error) {
      return error.what();
    }
    ADD_FAILURE() << "loaded";
    return "";
  }

  static TinyCorpus* corpus_;
  std::string tokenizer_ = testing::read_file(corpus_->tokenizer);
  testing::TemporaryFolder run_;
  std::string folder_;
  nn::Transformer model_{nullptr};
};
TinyCorpus* LoadTest::corpus_ = nullptr;

TEST_F(LoadTest, GivesTheSavedModelItsConfigAndItsTokenizer) {
  save();
  LoadedModel loaded = load_model(run_ / ".", {.device = DeviceKind::kCpu});
  EXPECT_EQ(loaded.step, 7);
  EXPECT_NE(loaded.folder.find("step-00000007"), std::string::npos) << loaded.folder;
  EXPECT_EQ(loaded.config.model.channels, 16);
  EXPECT_EQ(loaded.config.eval.window, 32);
  EXPECT_EQ(loaded.tokenizer.vocab_size(), 400);
  EXPECT_FALSE(loaded.model->is_training());
  const auto saved = model_->named_parameters(), now = loaded.model->named_parameters();
  ASSERT_EQ(now.size(), saved.size());
  for (const auto& item : saved) {
    EXPECT_TRUE(at::equal(now[item.key()], item.value())) << item.key();
  }
  const at::Tensor tokens = at::arange(20).view({2, 10});
  at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(loaded.model->logits(tokens), model_->logits(tokens)));
}

TEST_F(LoadTest, RoundsToBf16) {
  save();
  const LoadedModel loaded =
      load_model(folder_, {.device = DeviceKind::kCpu, .dtype = DtypeKind::kBf16});
  for (const auto& item : loaded.model->named_parameters()) {
    EXPECT_EQ(item.value().scalar_type(), at::kBFloat16) << item.key();
    const at::Tensor saved = model_->named_parameters()[item.key()];
    EXPECT_TRUE(at::allclose(item.value().to(at::kFloat), saved, 1.0 / 256, 0)) << item.key();
  }
}

TEST_F(LoadTest, NeedsNoOptimizerFile) {
  save();
  testing::write_file(folder_ + "/optimizer.safetensors", "damaged");
  LoadedModel damaged = load_model(folder_);
  std::filesystem::remove(folder_ + "/optimizer.safetensors");
  LoadedModel absent = load_model(run_ / ".");
  EXPECT_EQ(nll_of(absent), nll_of(damaged));
}

TEST_F(LoadTest, RefusesDamageToWhatItReads) {
  save();
  std::string bytes = testing::read_file(folder_ + "/model.safetensors");
  bytes[bytes.size() - 5] ^= 8;
  testing::write_file(folder_ + "/model.safetensors", bytes);
  EXPECT_NE(refusal<CheckpointError>().find("model.safetensors"), std::string::npos);
}

TEST_F(LoadTest, RefusesWeightsThatAreNotFinite) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    save({}, [&](nn::Transformer& model) {
      model->named_parameters()["blocks.1.ffn.down"].view({-1})[100].fill_(bad);
    });
    const std::string message = refusal<NonFiniteError>();
    EXPECT_NE(message.find("checkpoint " + folder_ +
                           ": blocks.1.ffn.down holds values that are not finite"),
              std::string::npos)
        << message;
  }
}

TEST_F(LoadTest, RefusesACheckpointWithoutATokenizerOrWithALargerOne) {
  tokenizer_.clear();
  save();
  EXPECT_NE(refusal<CheckpointError>().find("tokenizer.model: is missing"), std::string::npos);
  tokenizer_ = testing::read_file(corpus_->tokenizer);
  save({"model.vocab_size=399"});
  EXPECT_NE(refusal<CheckpointError>().find("399 token ids, its tokenizer 400"), std::string::npos);
}

TEST_F(LoadTest, OverridesChangeHowTheSameWeightsAreUsed) {
  save();
  const double plain = nll_with({});
  EXPECT_NEAR(nll_with({"model.attention=reference"}), plain, 1e-5 * plain);
  EXPECT_NE(nll_with({"model.stable_mask=false"}), plain);
  EXPECT_NE(nll_with({"model.stable_mask.mask_length=64"}), plain);
  EXPECT_EQ(nll_with({"model.stable_mask.mask_length=context"}), plain)
      << "the context is the checkpoint's, 32";
  EXPECT_NE(nll_with({"model.stable_mask.gamma=0.5"}), plain);
  EXPECT_NE(nll_with({"model.stable_mask.p_base=-3"}), plain);
  EXPECT_NE(nll_with({"model.window=4"}), plain);
  EXPECT_NE(nll_with({"model.rope_theta=500"}), plain);
  EXPECT_NE(nll_with({"model.rope_scaling=2"}), plain);
  EXPECT_NE(nll_with({"model.log_length_scale=true"}), plain);
  EXPECT_NE(nll_with({"data.document_mask=true"}), plain);
  const LoadedModel loaded =
      load_model(folder_, {.overrides = {"eval.window=16", "generate.top_k=3"}});
  EXPECT_EQ(loaded.config.eval.window, 16);
  EXPECT_EQ(loaded.config.generate.top_k, 3);
}

TEST_F(LoadTest, MaskLengthAndAttentionWindowGoBeforeTheOverrides) {
  save();
  const std::vector<std::string> overrides = {"model.stable_mask.mask_length=8", "model.window=4"};
  const auto length = [&](const std::string& text) {
    return nll_by(LoadOptions{.overrides = {overrides[0]}, .mask_length = text});
  };
  EXPECT_EQ(length("64"), nll_with({"model.stable_mask.mask_length=64"}));
  EXPECT_EQ(length("infinite"), nll_with({"model.stable_mask.mask_length=infinite"}));
  EXPECT_EQ(length("trained"), nll_with({}));
  EXPECT_NE(length("trained"), length("64"));
  const auto window = [&](int64_t keys) {
    return nll_by(LoadOptions{.overrides = {overrides[1]}, .attention_window = keys});
  };
  EXPECT_EQ(window(6), nll_with({"model.window=6"}));
  EXPECT_EQ(window(0), nll_with({}));
  EXPECT_NE(window(6), window(0));
}

TEST_F(LoadTest, AMaskLengthNeedsAMask) {
  save({"model.stable_mask=false"});
  for (const std::string length : {"64", "infinite", "trained"}) {
    const std::string message = refusal<ConfigError>({}, length);
    EXPECT_EQ(message, "--mask-length " + length + ": the model of " + folder_ +
                           " has no StableMask; turn it on with --set model.stable_mask=true, or "
                           "leave --mask-length out");
  }
  EXPECT_EQ(nll_by(LoadOptions{.overrides = {"model.stable_mask=true"}, .mask_length = "64"}),
            nll_with({"model.stable_mask=true", "model.stable_mask.mask_length=64"}));
  save();
  EXPECT_NE(refusal<ConfigError>({}, "half").find("/model/stable_mask/mask_length"),
            std::string::npos);
}

TEST_F(LoadTest, AMaskThatIsTurnedOnHasTheDefaults) {
  save({"model.stable_mask=false", "model.stable_mask.gamma=slopes",
        "model.stable_mask.beyond=none", "model.stable_mask.mask_length=7",
        "model.stable_mask.learnable=true"});
  const auto mask = [&](const std::vector<std::string>& overrides) {
    return load_model(folder_, {.overrides = overrides}).config.model.stable_mask;
  };
  StableMaskConfig on = mask({"model.stable_mask=true", "model.stable_mask.p_base=-1"});
  EXPECT_EQ(on.gamma.value.values, std::vector<double>{1}) << "RoPE's";
  EXPECT_EQ(on.p_base.values, std::vector<double>{-1});
  EXPECT_EQ(on.mask_length.length, 32);
  EXPECT_EQ(on.beyond, BeyondMask::kInfinite);
  on = mask({"model.stable_mask.gamma=0.5", "model.stable_mask=true"});
  EXPECT_EQ(on.gamma.value.values, std::vector<double>{0.5});
}

TEST_F(LoadTest, OverridesThatNeedOtherWeightsAreRefusedByName) {
  save();
  for (const std::string field :
       {"model.layers=1", "model.position=alibi", "model.qk_norm=true",
        "model.stable_mask.learnable=true", "train.context=64", "optimizer.lr=1"}) {
    const std::string message = refusal<ConfigError>({field});
    EXPECT_EQ(message.rfind("--set " + field.substr(0, field.find('=')) + ": ", 0), 0u) << message;
    EXPECT_NE(message.find("model.attention, model.window"), std::string::npos) << message;
  }
  EXPECT_NE(refusal<ConfigError>({"model.atention=flash"}).find("did you mean \"attention\"?"),
            std::string::npos);
  EXPECT_NE(refusal<ConfigError>({"model.window=-1"}).find("/model/window"), std::string::npos);
}

TEST_F(LoadTest, ALearnedMaskKeepsItsValues) {
  save({"model.stable_mask.learnable=true"});
  for (const std::string field : {"model.stable_mask", "model.stable_mask.enabled"}) {
    EXPECT_NE(refusal<ConfigError>({field + "=false"}).find("was learned"), std::string::npos);
  }
  for (const std::string field : {"model.stable_mask.gamma", "model.stable_mask.p_base"}) {
    EXPECT_NE(refusal<ConfigError>({field + "=0.5"}).find("was learned"), std::string::npos);
  }
  EXPECT_NE(nll_with({"model.stable_mask.mask_length=64"}), nll_with({}));
  EXPECT_EQ(load_model(folder_, {.overrides = {"model.stable_mask.beyond=none"}})
                .config.model.stable_mask.beyond,
            BeyondMask::kNone);
}

TEST_F(LoadTest, GeneratesFromTheTokenizersIds) {
  save();
  LoadedModel loaded = load_model(folder_);
  GenerateConfig config;
  config.max_tokens = 60;
  config.temperature = 5;  // nearly uniform over all 416 ids
  const std::vector<int32_t> ids = generate(loaded.model, {loaded.tokenizer.eos_id()}, config,
                                            {.vocab_size = loaded.tokenizer.vocab_size()});
  EXPECT_NO_THROW(loaded.tokenizer.decode(ids));
}

TEST(SelectDevice, CpuWhereItIsAskedForOrThereIsNoGpu) {
  EXPECT_TRUE(select_device(DeviceKind::kCpu, 3).is_cpu());
  if (ops::gpu_count() > 0) return;
  EXPECT_TRUE(select_device(DeviceKind::kAuto, 3).is_cpu());
  EXPECT_THROW(select_device(DeviceKind::kCuda, 0), ConfigError);
}

TEST(GpuSelectDevice, EveryProcessOfTheMachineHasAGpu) {
  const int64_t gpus = ops::gpu_count();
  if (gpus < 1) GTEST_SKIP() << "no CUDA device";
  EXPECT_EQ(select_device(DeviceKind::kAuto), at::Device(at::kCUDA, 0));
  if (gpus == 1) {
    // As when the launcher shows each process one GPU.
    EXPECT_EQ(select_device(DeviceKind::kCuda, 5), at::Device(at::kCUDA, 0));
    return;
  }
  EXPECT_EQ(select_device(DeviceKind::kCuda, 1), at::Device(at::kCUDA, 1));
  EXPECT_EQ(at::empty({1}, at::kCUDA).device().index(), 1) << "the current device";
  try {
    select_device(DeviceKind::kAuto, gpus);
    ADD_FAILURE() << "no exception";
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("process " + std::to_string(gpus) + " "), std::string::npos) << message;
    EXPECT_NE(message.find(std::to_string(gpus) + " are visible"), std::string::npos) << message;
  }
  select_device(DeviceKind::kCuda, 0);
}

}  // namespace
}  // namespace stablemask
