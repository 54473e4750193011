// Runs with train.ema_decay.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "stablemask/base/error.h"
#include "stablemask/infer/adapters.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/load.h"
#include "stablemask/nn/model.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using testing::metrics_of;
using testing::quiet_options;
using testing::stop_after;
using testing::tensors_of;
using testing::tiny_json;
using testing::train;
using testing::train_with_stops;

class EmaTest : public testing::TinyRunTest {
 protected:
  static constexpr double kDecay = 0.7;

  Config averaged(const std::string& out) const {
    Config run = config(out);
    run.train.steps = 20;
    run.train.eval_every = 3;
    run.train.ema_decay = kDecay;
    return run;
  }
  static std::map<std::string, at::Tensor> wide(const nn::Transformer& model) {
    std::map<std::string, at::Tensor> values;
    for (const auto& item : model->named_parameters()) {
      values[item.key()] = item.value().detach().to(at::kDouble).clone();
    }
    return values;
  }
  static at::Tensor tensor_of(const TensorView& view) {
    at::Tensor tensor = at::empty(view.shape, at::kFloat);
    std::memcpy(tensor.mutable_data_ptr<float>(), view.data, view.bytes());
    return tensor;
  }
  /// Those of a kind: "" or "trained.", the prefix of tensors_of.
  static std::map<std::string, std::string> weights_of(const std::string& run,
                                                       const std::string& prefix) {
    std::map<std::string, std::string> found;
    const Checkpoint checkpoint = load_checkpoint(resolve_checkpoint(run));
    const auto all = tensors_of(checkpoint);
    for (const auto& [name, view] : checkpoint.model.tensors()) found[name] = all.at(prefix + name);
    return found;
  }
  double loss_of(const std::string& run, WeightKind weights = WeightKind::kAveraged) const {
    LoadOptions options{.device = DeviceKind::kCpu};
    options.weights = weights;
    LoadedModel loaded = load_model(run, options);
    const EvalOptions eval = eval_options(loaded.config, loaded.tokenizer);
    const Perplexity result = evaluate(loaded.model, Shard::open(corpus_->valid), eval);
    return result.nll / static_cast<double>(result.tokens);
  }
  /// Trains to the end; `want` follows the weights by the formula, from step `first` on.
  static RunResult train_beside(const Config& config, std::map<std::string, at::Tensor>& want) {
    std::unique_ptr<Trainer> trainer;
    RunOptions options = quiet_options();
    options.on_step = [&](const StepMetrics& metrics) {
      const auto t = static_cast<double>(metrics.step);
      const double d = std::min(kDecay, (1 + t) / (10 + t));
      for (const auto& [name, value] : wide(trainer->model()))
        want[name].mul_(d).add_(value, 1 - d);
      return true;
    };
    trainer = std::make_unique<Trainer>(config, options);
    want = wide(trainer->model());
    const RunResult result = trainer->run();
    const Checkpoint saved = load_checkpoint(result.checkpoint);
    for (const auto& [name, value] : wide(trainer->model())) {
      EXPECT_TRUE(tensor_of(saved.trained->tensors().at(name)).to(at::kDouble).equal(value));
    }
    return result;
  }
  static void expect_averages(const std::string& folder,
                              const std::map<std::string, at::Tensor>& want) {
    const Checkpoint saved = load_checkpoint(folder);
    EXPECT_TRUE(saved.averaged);
    ASSERT_EQ(saved.model.tensors().size(), want.size());
    for (const auto& [name, view] : saved.model.tensors()) {
      const double error = (tensor_of(view) - want.at(name)).norm().item<double>();
      EXPECT_LT(error, 3e-7 * want.at(name).norm().item<double>()) << name;
    }
  }
};

TEST_F(EmaTest, CheckpointsHoldTheAverageOfEveryStepsWeights) {
  std::map<std::string, at::Tensor> want;
  const RunResult result = train_beside(averaged("run"), want);
  EXPECT_TRUE(result.finished);
  expect_averages(result.checkpoint, want);
  EXPECT_NE(weights_of(result.checkpoint, ""), weights_of(result.checkpoint, "trained."));
}

/// Validations with the averages in between included.
TEST_F(EmaTest, ChangesNoBitOfTheTraining) {
  const Config with = averaged("with");
  Config without = averaged("without");
  without.train.ema_decay = 0;
  const RunResult averaged = train(with), plain = train(without);
  EXPECT_EQ(testing::losses_of(with.train.out), testing::losses_of(without.train.out));
  EXPECT_EQ(weights_of(with.train.out, "trained."), weights_of(without.train.out, ""));
  EXPECT_NE(averaged.valid_loss, plain.valid_loss);
  EXPECT_FALSE(load_checkpoint(plain.checkpoint).averaged);
  EXPECT_FALSE(std::filesystem::exists(plain.checkpoint + "/trained.safetensors"));
  // A validation is `eval` of the checkpoint, by default with the averages.
  EXPECT_EQ(loss_of(with.train.out), averaged.valid_loss);
  EXPECT_EQ(loss_of(with.train.out, WeightKind::kTrained), plain.valid_loss);
  EXPECT_EQ(loss_of(without.train.out, WeightKind::kTrained), plain.valid_loss);
}

TEST_F(EmaTest, StoppedRunHasTheSameAverages) {
  const Config whole = averaged("whole"), parts = averaged("parts");
  train(whole);
  train_with_stops(parts, {2, 6, 11});
  EXPECT_EQ(tensors_of(whole.train.out), tensors_of(parts.train.out));
  const auto one = metrics_of(whole.train.out), other = metrics_of(parts.train.out);
  ASSERT_EQ(one.size(), other.size());
  for (size_t i = 0; i < one.size(); ++i) EXPECT_EQ(one[i]["loss"], other[i]["loss"]);
  EXPECT_EQ(one.back()["valid_loss"], other.back()["valid_loss"]);
}

TEST_F(EmaTest, TurnedOnInAResumedRunStartsAtItsWeights) {
  Config run = averaged("run");
  run.train.ema_decay = 0;
  RunOptions options = quiet_options();
  options.on_step = stop_after(8, SIGTERM);
  train(run, options);
  request_stop(0);
  run.train.ema_decay = kDecay;
  std::map<std::string, at::Tensor> want;
  const RunResult result = train_beside(run, want);
  EXPECT_EQ(result.step, 20);
  expect_averages(result.checkpoint, want);
}

TEST_F(EmaTest, TurnedOffInAResumedRunIsDroppedWithALine) {
  Config run = averaged("run"), plain = averaged("plain");
  plain.train.ema_decay = 0;
  train(plain);
  RunOptions options = quiet_options();
  options.on_step = stop_after(8, SIGTERM);
  train(run, options);
  request_stop(0);
  run.train.ema_decay = 0;
  ::testing::internal::CaptureStdout();
  train(run, {});
  const std::string shown = ::testing::internal::GetCapturedStdout();
  EXPECT_NE(shown.find("train.ema_decay is 0: the average of "), std::string::npos) << shown;
  EXPECT_NE(shown.find(" is dropped; training goes on from the trained weights"),
            std::string::npos);
  EXPECT_EQ(tensors_of(run.train.out), tensors_of(plain.train.out));
}

TEST_F(EmaTest, BestAndStrippedCheckpointsAndFinetuningHaveTheAverages) {
  Config run = averaged("run");
  run.train.keep_best = true;
  const RunResult result = train(run);
  EXPECT_EQ(loss_of(run.train.out + "/best"), result.best_loss);
  strip_checkpoint(result.checkpoint, folder_ / "stripped");
  EXPECT_EQ(loss_of(folder_ / "stripped"), result.valid_loss);
  EXPECT_THROW(loss_of(folder_ / "stripped", WeightKind::kTrained), CheckpointError);
  nlohmann::json file = tiny_json(*corpus_, folder_ / "tuned");
  file.erase("model");
  file["train"]["init_from"] = run.train.out;
  file["train"]["steps"] = 1;
  file["optimizer"]["lr"] = 0;
  testing::write_file(folder_ / "finetune.json", file.dump());
  EXPECT_EQ(train(load_finetune_config(folder_ / "finetune.json")).valid_loss, result.valid_loss);
}

TEST_F(EmaTest, OfAdaptersAloneWhereTheseAreTrained) {
  const Config source = averaged("source");
  train(source);
  nlohmann::json file = tiny_json(*corpus_, folder_ / "tuned");
  file.erase("model");
  file["train"]["init_from"] = source.train.out;
  file["train"]["ema_decay"] = 0.9;
  file["lora"] = {{"rank", 2}, {"alpha", 8}};
  file["optimizer"]["lr"] = 0.02;
  testing::write_file(folder_ / "finetune.json", file.dump());
  const Config config = load_finetune_config(folder_ / "finetune.json");
  const RunResult result = train(config);
  for (const auto& [name, bytes] : tensors_of(config.train.out)) {
    EXPECT_NE(name.find("_lora_"), std::string::npos) << name;
  }
  EXPECT_NE(weights_of(result.checkpoint, ""), weights_of(result.checkpoint, "trained."));
  EXPECT_NEAR(loss_of(config.train.out), result.valid_loss, 1e-4);
  const double trained = loss_of(config.train.out, WeightKind::kTrained);
  EXPECT_NE(trained, loss_of(config.train.out));
  merge_checkpoint(result.checkpoint, folder_ / "merged");
  EXPECT_EQ(loss_of(folder_ / "merged"), loss_of(config.train.out));
  EXPECT_THROW(loss_of(folder_ / "merged", WeightKind::kTrained), CheckpointError);
  merge_checkpoint(result.checkpoint, folder_ / "merged-trained", WeightKind::kTrained);
  EXPECT_EQ(loss_of(folder_ / "merged-trained"), trained);
  EXPECT_EQ(loss_of(folder_ / "merged-trained", WeightKind::kTrained), trained);
}

TEST_F(EmaTest, IsCountedByTheDryRun) {
  Config run = averaged("run");
  const auto number_after = [](const std::string& report, const std::string& name) {
    const size_t begin = report.find("\n" + name);
    return begin == std::string::npos ? 0.0 : std::stod(report.substr(begin + 1 + name.size()));
  };
  const std::string with = dry_run_report(run);
  run.train.ema_decay = 0;
  const std::string without = dry_run_report(run);
  EXPECT_EQ(2 * number_after(with, "  average"), number_after(with, "  optimizer")) << with;
  EXPECT_EQ(without.find("average"), std::string::npos) << without;
  EXPECT_NEAR(number_after(with, "checkpoint"), 4.0 / 3 * number_after(without, "checkpoint"),
              0.2 * number_after(without, "checkpoint"));
  run.train.ema_decay = kDecay;
  const double saved = [&] {
    double total = 0;
    const std::string folder = train(run).checkpoint;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      total += static_cast<double>(entry.file_size());
    }
    return total;
  }();
  EXPECT_NEAR(number_after(with, "checkpoint") * 1024, saved, 0.2 * saved) << with;
}

}  // namespace
}  // namespace stablemask
