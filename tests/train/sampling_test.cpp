#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <limits>
#include <thread>

#include "src/train/sampler.h"
#include "stablemask/base/error.h"
#include "stablemask/base/utf8.h"
#include "stablemask/infer/continuation.h"
#include "stablemask/infer/load.h"
#include "tests/report/event_files.h"
#include "tests/train/tiny_run.h"

/// Samples and TensorBoard events of runs.
namespace stablemask {
namespace {

using nlohmann::json;
using testing::metrics_of;
using testing::quiet_options;
using testing::stop_after;
using testing::tensors_of;
using testing::train;

class SamplingTest : public testing::TinyRunTest {
 protected:
  Config plain_config(const std::string& out) const {
    Config config = TinyRunTest::config(out);
    config.train.eval_every = 4;
    config.train.save_every = 5;
    return config;
  }
  /// Prompt and continuation are longer than the training context of 16.
  Config config(const std::string& out) const {
    Config config = plain_config(out);
    config.train.tensorboard = true;
    config.train.sample_prompts = {" The ", " = Arn =\n"};
    config.generate.max_tokens = 40;
    return config;
  }

  static std::string samples_of(const std::string& run) {
    return testing::read_file(run + "/samples.jsonl");
  }
  /// Step, scalars without timings and texts of every event but the config's.
  static std::vector<std::string> trace_of(const std::string& run) {
    std::vector<std::string> trace;
    for (const TensorboardEvent& event : events_in(run + "/tensorboard")) {
      json line = {{"step", event.step}, {"version", event.file_version}};
      for (const auto& scalar : event.scalars) {
        if (scalar.tag.starts_with("speed/") || scalar.tag.starts_with("memory/")) continue;
        if (scalar.tag != "progress/seconds") line[scalar.tag] = scalar.value;
      }
      bool is_config = false;
      for (const auto& text : event.texts) {
        line[text.tag] = text.markdown;
        is_config = text.tag == "config";
      }
      if (!is_config) trace.push_back(line.dump());
    }
    return trace;
  }
  static void expect_same_run(const Config& config, const Config& reference) {
    EXPECT_EQ(samples_of(config.train.out), samples_of(reference.train.out));
    EXPECT_EQ(trace_of(config.train.out), trace_of(reference.train.out));
    EXPECT_EQ(tensors_of(config.train.out), tensors_of(reference.train.out));
  }
};

TEST_F(SamplingTest, ChangesNoBitOfTheTraining) {
  const Config with = config("with"), without = plain_config("without");
  train(with);
  train(without);
  EXPECT_EQ(tensors_of(with.train.out), tensors_of(without.train.out));
  const std::vector<json> a = metrics_of(with.train.out), b = metrics_of(without.train.out);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    for (const char* name : {"loss", "grad_norm", "valid_loss"}) {
      EXPECT_EQ(a[i].value(name, json()), b[i].value(name, json())) << name;
    }
  }
  EXPECT_FALSE(std::filesystem::exists(without.train.out + "/samples.jsonl"));
  EXPECT_FALSE(std::filesystem::exists(without.train.out + "/tensorboard"));
}

/// Steps are replayed from a CUDA graph before and after the samples.
TEST_F(SamplingTest, GpuRunsKeepTheirBitsToo) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  const auto gpu_config = [&](const std::string& out, bool samples) {
    json file = testing::tiny_json(*corpus_, folder_ / out);
    file["model"] = {{"layers", 2}, {"channels", 64}, {"heads", 2}, {"ffn_hidden", 128}};
    file["train"]["device"] = "cuda";
    file["train"]["deterministic"] = true;
    file["train"]["context"] = 64;
    file["train"]["steps"] = 24;
    file["train"]["eval_every"] = 8;
    if (samples) file["train"]["sample_prompts"] = {" The river", " = Arn ="};
    return parse_config(file.dump(), "tiny");
  };
  const Config with = gpu_config("gpu-with", true), without = gpu_config("gpu-without", false);
  train(with);
  train(without);
  EXPECT_EQ(tensors_of(with.train.out), tensors_of(without.train.out));
  EXPECT_NE(samples_of(with.train.out), "");
}

TEST_F(SamplingTest, ContinuesThePromptsAsGenerateDoesAfterEachValidation) {
  const Config config = this->config("run");
  RunOptions options;
  ::testing::internal::CaptureStdout();
  train(config, options);
  const std::string said = ::testing::internal::GetCapturedStdout();
  std::vector<json> samples;
  std::istringstream lines(samples_of(config.train.out));
  for (std::string line; std::getline(lines, line);) samples.push_back(json::parse(line));
  ASSERT_EQ(samples.size(), 6U);
  for (size_t i = 0; i < samples.size(); ++i) {
    EXPECT_EQ(samples[i]["step"], 4 * (i / 2 + 1));
    EXPECT_EQ(samples[i]["number"], i % 2 + 1);
    EXPECT_EQ(samples[i]["prompt"], config.train.sample_prompts[i % 2]);
    EXPECT_NE(said.find("\nstep " + std::to_string(4 * (i / 2 + 1)) + ", sample " +
                        std::to_string(i % 2 + 1) + ":\n  "),
              std::string::npos)
        << said;
  }
  LoadOptions on_cpu;
  on_cpu.device = DeviceKind::kCpu;
  LoadedModel loaded = load_model(config.train.out, on_cpu);
  for (size_t i = 0; i < 2; ++i) {
    const infer::Prompt prompt =
        infer::PromptEncoder(loaded.tokenizer).encode(config.train.sample_prompts[i], "prompt");
    EXPECT_EQ(prompt.held.empty(), i == 1) << "a line end is not taken back";
    infer::Continuation text(loaded.tokenizer, prompt.held, {});
    std::string expected;
    infer::GeneratorOptions options;
    options.capacity = 64;
    options.vocab_size = loaded.tokenizer.vocab_size();
    infer::Generator generator(loaded.model, options);
    infer::GenerateRequest request{prompt.ids, config.generate, prompt.first_ids};
    request.emit = [&](const infer::DrawnToken& token) {
      expected += text.push(token.id);
      return true;
    };
    generator.add(std::move(request));
    generator.run();
    expected += text.finish();
    EXPECT_EQ(samples[4 + i]["continuation"], with_replacements(expected));
  }
}

TEST_F(SamplingTest, StoppedAndResumedRunsRecordWhatOneRunRecords) {
  const Config reference = config("reference"), stopped = config("stopped");
  train(reference);
  EXPECT_EQ(trace_of(reference.train.out).size(), 1U + 12U + 6U) << "version, lines, samples";
  for (const int64_t stop : {2, 4, 11}) {  // step 4 is due a validation
    RunOptions options = quiet_options();
    options.on_step = stop_after(stop, SIGTERM);
    EXPECT_EQ(train(stopped, options).step, stop);
    request_stop(0);
  }
  EXPECT_TRUE(train(stopped).finished);
  expect_same_run(stopped, reference);

  // A crash after step 9, with the checkpoint of step 5: samples and events of step 8 come again.
  Config crashed = config("crashed");
  const Config victim = config("victim");
  RunOptions options = quiet_options();
  options.on_step = [&](const StepMetrics& metrics) {
    if (metrics.step < 9) return true;
    std::filesystem::copy(victim.train.out, crashed.train.out,
                          std::filesystem::copy_options::recursive);
    return false;
  };
  train(victim, options);
  EXPECT_TRUE(train(crashed).finished);
  expect_same_run(crashed, reference);
}

TEST_F(SamplingTest, AStopSignalEndsSamplingAtOnce) {
  const Config reference = config("reference"), normal = config("run");
  train(reference);
  Config endless = normal;
  endless.generate.max_tokens = 1000000;
  endless.generate.temperature = 0;  // a drawn end-of-text would end a sample
  std::thread clock;
  RunOptions options = quiet_options();
  options.on_step = [&](const StepMetrics& metrics) {
    if (metrics.step == 8) {
      clock = std::thread([] {
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        request_stop(SIGTERM);
      });
    }
    return true;
  };
  endless.train.eval_every = 8;
  const RunResult result = train(endless, options);
  clock.join();
  EXPECT_EQ(result.step, 8);
  EXPECT_EQ(result.signal, SIGTERM);
  EXPECT_EQ(samples_of(normal.train.out), "") << "all samples of a step or none";
  EXPECT_TRUE(train(normal).finished);
  EXPECT_EQ(tensors_of(normal.train.out), tensors_of(reference.train.out));
  const std::string all = samples_of(reference.train.out);
  EXPECT_EQ(samples_of(normal.train.out), all.substr(all.find("{\"step\":8,")));
}

TEST_F(SamplingTest, SamplerStopsBetweenTokensAndLeavesTheModelTraining) {
  train(plain_config("run"));
  LoadedModel loaded = load_model(plain_config("run").train.out);
  Sampler::Options options;
  options.prompts = {"a", "b"};
  options.generate.max_tokens = 10;
  std::vector<int64_t> drawn;
  options.progress = [&](int64_t now, int64_t total) {
    EXPECT_EQ(total, 20);
    drawn.push_back(now);
    if (now == 13) request_stop(SIGINT);
  };
  Sampler sampler(loaded.model, loaded.tokenizer, options, dist::single_process_group());
  std::vector<Sample> samples;
  EXPECT_EQ(sampler.sample(1, samples), SIGINT);
  EXPECT_TRUE(samples.empty());
  EXPECT_EQ(drawn.size(), 13U);
  EXPECT_TRUE(loaded.model->is_training());
  options.prompts = {"\xFF"};
  EXPECT_THROW(Sampler(loaded.model, loaded.tokenizer, options, dist::single_process_group()),
               DataError);
}

TEST_F(SamplingTest, FinetuningRefusesPromptsForAModelWithoutKvCache) {
  Config source = plain_config("source");
  source.model.log_length_scale = true;
  source.train.steps = 1;
  train(source);
  json file = testing::tiny_json(*corpus_, folder_ / "tuned");
  file.erase("model");
  file["train"]["init_from"] = source.train.out;
  testing::write_file(folder_ / "finetune.json", file.dump());
  EXPECT_NO_THROW(load_finetune_config(folder_ / "finetune.json"));
  file["train"]["sample_prompts"] = {"a"};
  testing::write_file(folder_ / "finetune.json", file.dump());
  try {
    load_finetune_config(folder_ / "finetune.json");
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    const std::string said = error.what();
    EXPECT_NE(said.find("/train/sample_prompts: model.log_length_scale "), std::string::npos)
        << said;
  }
}

TEST_F(SamplingTest, LogitsThatAreNotFiniteCostASampleOnly) {
  train(plain_config("run"));
  LoadedModel loaded = load_model(plain_config("run").train.out);
  {
    const at::NoGradGuard no_grad;
    loaded.model->head_weight().fill_(std::numeric_limits<double>::quiet_NaN());
  }
  Sampler::Options options;
  options.prompts = {"a"};
  Sampler sampler(loaded.model, loaded.tokenizer, options, dist::single_process_group());
  std::vector<Sample> samples;
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(sampler.sample(7, samples), 0);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "stablemask: warning: step 7: sample 1 is left out: a logit is not finite\n");
  EXPECT_TRUE(samples.empty());
}

}  // namespace
}  // namespace stablemask
