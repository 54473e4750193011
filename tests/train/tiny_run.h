#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stablemask/base/stop.h"
#include "stablemask/config/config.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/train/trainer.h"
#include "tests/data/tiny_corpus.h"

/// Runs small enough for tests: a model of a few thousand weights on the tiny corpus.
namespace stablemask::testing {

/// 64 sequences of 16 tokens make an epoch of exactly eight steps where the corpus has more.
inline nlohmann::json tiny_json(const TinyCorpus& corpus, const std::string& out) {
  return {
      {"model", {{"layers", 2}, {"channels", 16}, {"heads", 2}, {"ffn_hidden", 32}}},
      {"data",
       {{"train", {corpus.train}}, {"valid", corpus.valid}, {"tokenizer", corpus.tokenizer}}},
      {"train",
       {{"out", out},
        {"device", "cpu"},
        {"threads", 1},
        {"context", 16},
        {"batch", 8},
        {"micro_batch", 4},
        {"steps", 12},
        {"log_every", 1}}},
      {"optimizer", {{"lr", 0.01}}},
      {"schedule", {{"warmup_steps", 2}}},
  };
}

inline Config tiny_config(const TinyCorpus& corpus, const std::string& out) {
  return parse_config(tiny_json(corpus, out).dump(), "tiny");
}

inline RunOptions quiet_options(ResumePolicy resume = ResumePolicy::kAuto) {
  RunOptions options;
  options.resume = resume;
  options.quiet = true;
  return options;
}

/// For RunOptions::on_step: a stop signal after the step.
inline MetricsCallback stop_after(int64_t step, int signal) {
  return [=](const StepMetrics& metrics) {
    if (metrics.step == step) request_stop(signal);
    return true;
  };
}

/// Trains to the end.
inline RunResult train(const Config& config, const RunOptions& options = quiet_options()) {
  return Trainer(config, options).run();
}

/// Trains to the end in several runs: a stop signal ends one after each of these steps.
inline RunResult train_with_stops(const Config& config, std::initializer_list<int64_t> stops) {
  for (const int64_t stop : stops) {
    RunOptions options = quiet_options();
    options.on_step = stop_after(stop, SIGTERM);
    train(config, options);
    request_stop(0);
  }
  return train(config);
}

/// The metrics file, line by line.
inline std::vector<nlohmann::json> metrics_of(const std::string& run) {
  std::ifstream file(run + "/metrics.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// The loss of each line; NaN where it is not finite.
inline std::vector<double> losses_of(const std::string& run) {
  std::vector<double> losses;
  for (const nlohmann::json& line : metrics_of(run)) {
    losses.push_back(line["loss"].is_null() ? std::nan("") : line["loss"].get<double>());
  }
  return losses;
}

/// Bytes of every tensor: model, optimizer and, where the model is an average, "trained." weights.
inline std::map<std::string, std::string> tensors_of(const Checkpoint& checkpoint) {
  std::map<std::string, std::string> bytes;
  const auto add = [&](const SafetensorsFile& file, const std::string& prefix = "") {
    for (const auto& [name, view] : file.tensors()) {
      bytes[prefix + name].assign(static_cast<const char*>(view.data), view.bytes());
    }
  };
  add(checkpoint.model);
  if (checkpoint.optimizer) add(*checkpoint.optimizer);
  if (checkpoint.trained) add(*checkpoint.trained, "trained.");
  return bytes;
}

inline std::map<std::string, std::string> tensors_of(const std::string& folder) {
  return tensors_of(load_checkpoint(resolve_checkpoint(folder)));
}

/// Tests of runs in a folder of their own, on one corpus.
class TinyRunTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { corpus_ = new TinyCorpus(); }
  static void TearDownTestSuite() { delete corpus_; }
  void TearDown() override { request_stop(0); }

  Config config(const std::string& out) const { return tiny_config(*corpus_, folder_ / out); }
  /// With this precision, validated after every six steps.
  Config config_in(Precision precision, const std::string& out) const {
    Config run = config(out);
    run.train.precision = precision;
    run.train.eval_every = 6;
    return run;
  }

  inline static TinyCorpus* corpus_ = nullptr;
  TemporaryFolder folder_;
};

}  // namespace stablemask::testing
