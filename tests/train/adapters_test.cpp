#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <filesystem>

#include "stablemask/base/error.h"
#include "stablemask/infer/adapters.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/load.h"
#include "stablemask/io/base_checkpoint.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::losses_of;
using testing::quiet_options;
using testing::stop_after;
using testing::tensors_of;
using testing::tiny_json;
using testing::train;

/// A source of 40 steps, and a run that trains adapters of it.
class AdaptersTest : public testing::TinyRunTest {
 protected:
  void SetUp() override {
    json file = tiny_json(*corpus_, folder_ / "source");
    file["train"]["steps"] = 40;
    source_ = parse_config(file.dump(), "source");
    train(source_);
    file_ = tiny_json(*corpus_, folder_ / "tuned");
    file_.erase("model");
    file_["train"]["init_from"] = source_.train.out;
    file_["lora"] = {{"rank", 2}, {"alpha", 8}};
    file_["optimizer"]["lr"] = 0.02;
  }
  Config load(const json& file, const RunOptions& options = quiet_options()) {
    testing::write_file(folder_ / "finetune.json", file.dump());
    return load_finetune_config(folder_ / "finetune.json", {}, options);
  }
  double validation_loss(const std::string& run) const { return loss_on(corpus_->valid, run); }
  double loss_on(const std::string& shard, const std::string& run) const {
    LoadedModel loaded = load_model(run, {.device = DeviceKind::kCpu});
    const EvalOptions options = eval_options(loaded.config, loaded.tokenizer.eos_id());
    const Perplexity result = evaluate(loaded.model, Shard::open(shard), options);
    return result.nll / static_cast<double>(result.tokens);
  }

  Config source_;
  json file_;
};

TEST_F(AdaptersTest, LearnBesideWeightsThatStay) {
  const auto before = tensors_of(source_.train.out);
  file_["train"]["steps"] = 60;
  const Config config = load(file_);
  const RunResult result = train(config);
  const std::vector<double> losses = losses_of(config.train.out);
  EXPECT_NEAR(losses.front(), losses_of(source_.train.out).back(), 0.3);
  EXPECT_LT(loss_on(corpus_->train, config.train.out),
            loss_on(corpus_->train, source_.train.out) - 0.01);
  EXPECT_EQ(tensors_of(source_.train.out), before);
  for (const auto& [name, bytes] : tensors_of(config.train.out)) {
    EXPECT_NE(name.find("_lora_"), std::string::npos) << name;
  }
  // The checkpoint, merged, is the model that the run validated.
  EXPECT_NEAR(validation_loss(config.train.out), result.valid_loss, 1e-4);
}

TEST_F(AdaptersTest, ResumeBitForBit) {
  file_["lora"]["dropout"] = 0.1;
  file_["train"]["out"] = std::string(folder_ / "whole");
  train(load(file_));
  file_["train"]["out"] = std::string(folder_ / "parts");
  RunOptions options = quiet_options();
  options.on_step = stop_after(5, SIGTERM);
  EXPECT_EQ(train(load(file_), options).step, 5);
  request_stop(0);
  EXPECT_TRUE(train(load(file_)).finished);
  EXPECT_EQ(tensors_of(folder_ / "parts"), tensors_of(folder_ / "whole"));
}

TEST_F(AdaptersTest, DropoutDoesNotDependOnTheMicroBatch) {
  file_["lora"]["dropout"] = 0.3;
  std::vector<double> first;
  for (const int64_t micro_batch : {8, 2}) {
    file_["train"]["micro_batch"] = micro_batch;
    file_["train"]["out"] = std::string(folder_ / std::to_string(micro_batch));
    const Config config = load(file_);
    train(config);
    const std::vector<double> losses = losses_of(config.train.out);
    if (first.empty()) first = losses;
    for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(losses[i], first[i], 1e-3) << i;
  }
}

TEST_F(AdaptersTest, AnotherBaseIsRefused) {
  const Config config = load(file_);
  train(config);
  const auto refusal = [&] {
    try {
      load_model(config.train.out, {.device = DeviceKind::kCpu});
    } catch (const CheckpointError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal(), "");
  const std::string base =
      std::filesystem::path(resolve_checkpoint(source_.train.out)).lexically_normal();
  std::filesystem::rename(source_.train.out, folder_ / "moved");
  EXPECT_NE(refusal().find("belong to is lost: " + base + " is gone; put it back"),
            std::string::npos)
      << refusal();
  source_.train.seed = 5;
  train(source_);
  EXPECT_NE(refusal().find(base + " has another model.safetensors"), std::string::npos)
      << refusal();
}

TEST_F(AdaptersTest, MoveWithTheirBase) {
  const std::filesystem::path here = std::filesystem::path(folder_ / ".").lexically_normal();
  const std::string tree = here / "tree", moved = here / "moved";
  std::filesystem::create_directories(tree + "/runs");
  std::filesystem::rename(source_.train.out, tree + "/source");
  file_["train"]["init_from"] = tree + "/source";
  file_["train"]["out"] = tree + "/runs/tuned";
  Config config = load(file_);
  const double expected = train(config).valid_loss;
  std::filesystem::rename(tree, moved);
  EXPECT_NEAR(validation_loss(moved + "/runs/tuned"), expected, 1e-4);

  // The place that the adapters were trained at has another model by now.
  source_.train.seed = 5;
  source_.train.out = tree + "/source";
  train(source_);
  EXPECT_NEAR(validation_loss(moved + "/runs/tuned"), expected, 1e-4);

  // A run that goes on there names the places of now.
  file_["train"]["init_from"] = moved + "/source";
  file_["train"]["out"] = moved + "/runs/tuned";
  file_["train"]["steps"] = 14;
  config = load(file_);
  EXPECT_EQ(train(config).step, 14);
  const json base = json::parse(load_checkpoint(resolve_checkpoint(config.train.out)).base_json);
  EXPECT_EQ(base["relative"], "../../../../source/checkpoints/step-00000040");
  EXPECT_EQ(base["checkpoint"], moved + "/source/checkpoints/step-00000040");

  // Adapters alone elsewhere find it by the absolute path, also without their optimizer.
  std::filesystem::rename(config.train.out, folder_ / "away");
  EXPECT_GT(validation_loss(folder_ / "away"), 0);
  strip_checkpoint(resolve_checkpoint(folder_ / "away"), folder_ / "stripped");
  EXPECT_EQ(json::parse(load_checkpoint(folder_ / "stripped").base_json)["relative"],
            "../moved/source/checkpoints/step-00000040");
  std::filesystem::remove_all(moved);
  try {
    validation_loss(folder_ / "away");
    ADD_FAILURE() << "not refused";
  } catch (const CheckpointError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("/source/checkpoints/step-00000040 is gone, " + moved +
                           "/source/checkpoints/step-00000040 is gone; put it back at one"),
              std::string::npos)
        << message;
  }
}

TEST_F(AdaptersTest, MergedCheckpointIsTheModelWithoutItsBase) {
  const Config config = load(file_);
  const double expected = train(config).valid_loss;
  const std::string adapters = resolve_checkpoint(config.train.out), to = folder_ / "merged";
  // Without the optimizer's state the adapters still name their base.
  strip_checkpoint(adapters, folder_ / "stripped");
  const std::string base = find_base(load_checkpoint(adapters))->folder;
  EXPECT_EQ(find_base(load_checkpoint(folder_ / "stripped"))->folder, base);
  merge_checkpoint(adapters, to);
  std::filesystem::remove_all(source_.train.out);
  EXPECT_NEAR(validation_loss(to), expected, 1e-4);
  EXPECT_TRUE(verify_checkpoint(to).empty());
  EXPECT_EQ(load_checkpoint(to).base_json, "");
  EXPECT_THROW(merge_checkpoint(to, folder_ / "twice"), CheckpointError);
}

TEST_F(AdaptersTest, AreMergedByAFullFinetuning) {
  const Config adapted = load(file_);
  const double before = train(adapted).valid_loss;
  file_.erase("lora");
  file_["train"]["init_from"] = adapted.train.out;
  file_["train"]["out"] = std::string(folder_ / "full");
  file_["train"]["steps"] = 1;
  file_["optimizer"]["lr"] = 0;
  EXPECT_NEAR(train(load(file_)).valid_loss, before, 1e-4);
  file_["lora"] = {{"rank", 2}};
  file_["train"]["out"] = std::string(folder_ / "again");
  try {
    train(load(file_));
    ADD_FAILURE() << "not refused";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("holds adapters already"), std::string::npos);
  }
}

}  // namespace
}  // namespace stablemask
