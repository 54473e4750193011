#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <stdexcept>
#include <thread>

#include "stablemask/base/error.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::metrics_of;
using testing::quiet_options;
using testing::stop_after;
using testing::TemporaryFolder;
using testing::tensors_of;
using testing::tiny_config;
using testing::TinyCorpus;
using testing::train;

/// What must not depend on where a run was interrupted.
struct Trace {
  std::vector<json> lines;
  std::map<std::string, std::string> tensors;
};

class ResumeTest : public ::testing::Test {
 protected:
  static constexpr int64_t kSteps = 20;

  static void SetUpTestSuite() {
    corpus_ = new TinyCorpus();
    folder_ = new TemporaryFolder();
    const Config config = make_config("reference");
    train(config);
    reference_ = new Trace(trace_of(config.train.out));
  }
  static void TearDownTestSuite() {
    delete reference_;
    delete folder_;
    delete corpus_;
  }
  void TearDown() override { request_stop(0); }

  /// Four micro-batches a step, an epoch of a few steps, validation and saves at different steps.
  static Config make_config(const std::string& out) {
    Config config = tiny_config(*corpus_, *folder_ / out);
    config.train.steps = kSteps;
    config.train.micro_batch = 2;
    config.train.batch = 8;
    config.train.context = 48;
    config.train.eval_every = 5;
    config.train.save_every = 4;
    config.train.log_every = 1;
    config.data.document_mask = true;
    config.data.prefetch = 3;
    return config;
  }

  static Trace trace_of(const std::string& run) {
    Trace trace;
    for (json line : metrics_of(run)) {
      for (const char* timing : {"seconds", "tokens_per_second", "peak_memory_bytes"}) {
        line.erase(timing);
      }
      trace.lines.push_back(std::move(line));
    }
    trace.tensors = tensors_of(run);
    return trace;
  }

  /// Trains, asking to stop after each of `stops`, and goes on until the end.
  static void run_with_stops(const Config& config, const std::vector<int64_t>& stops) {
    for (const int64_t stop : stops) {
      RunOptions options = quiet_options();
      options.on_step = stop_after(stop, SIGTERM);
      const RunResult result = train(config, options);
      EXPECT_EQ(result.step, stop);
      EXPECT_EQ(result.signal, SIGTERM);
      request_stop(0);
    }
    EXPECT_TRUE(train(config).finished);
  }

  /// The run as it is on disk after step `step` of `config`, with a folder of its own: what a crash
  /// at that moment leaves.
  static Config crash_of(const Config& config, int64_t step) {
    Config crashed = config;
    crashed.train.out += "-crashed";
    RunOptions options = quiet_options();
    options.on_step = [&](const StepMetrics& metrics) {
      if (metrics.step < step) return true;
      std::filesystem::copy(config.train.out, crashed.train.out,
                            std::filesystem::copy_options::recursive);
      return false;
    };
    train(config, options);
    return crashed;
  }

  static void expect_same(const Trace& trace, const Trace& reference) {
    EXPECT_EQ(trace.lines, reference.lines);
    ASSERT_EQ(trace.tensors.size(), reference.tensors.size());
    for (const auto& [name, bytes] : reference.tensors) {
      EXPECT_TRUE(trace.tensors.at(name) == bytes) << name << " differs";
    }
  }
  static void expect_reference(const Config& config) {
    expect_same(trace_of(config.train.out), *reference_);
  }

  static TinyCorpus* corpus_;
  static TemporaryFolder* folder_;
  static Trace* reference_;
};
TinyCorpus* ResumeTest::corpus_ = nullptr;
TemporaryFolder* ResumeTest::folder_ = nullptr;
Trace* ResumeTest::reference_ = nullptr;

TEST_F(ResumeTest, ReferenceCoversWhatIsClaimed) {
  ASSERT_EQ(reference_->lines.size(), static_cast<size_t>(kSteps));
  EXPECT_TRUE(reference_->lines[4].contains("valid_loss"));
  EXPECT_FALSE(reference_->lines[5].contains("valid_loss"));
  const Config config = make_config("reference");
  const int64_t sequences = (Shard::open(corpus_->train).size() - 1) / config.train.context;
  EXPECT_GT(kSteps * config.train.batch, 2 * sequences) << "several epochs";
  EXPECT_NE(sequences % config.train.batch, 0) << "epochs end inside a step";
}

TEST_F(ResumeTest, MidEpoch) {
  const Config config = make_config("mid-epoch");
  run_with_stops(config, {2});
  expect_reference(config);
}

TEST_F(ResumeTest, AroundEpochBoundaries) {
  const int64_t sequences =
      (Shard::open(corpus_->train).size() - 1) / make_config("x").train.context;
  const int64_t boundary = sequences / 8;  // the step after it reads the end of one, start of next
  const Config config = make_config("epoch");
  run_with_stops(config, {boundary, boundary + 1});
  expect_reference(config);
}

TEST_F(ResumeTest, AtAnEvalStepBeforeItsValidation) {
  const Config config = make_config("eval");
  run_with_stops(config, {5});
  expect_reference(config);
}

TEST_F(ResumeTest, AtASaveStep) {
  const Config config = make_config("save");
  run_with_stops(config, {8});
  expect_reference(config);
}

TEST_F(ResumeTest, AfterTheLastStepBeforeItsValidation) {
  const Config config = make_config("last");
  run_with_stops(config, {kSteps});
  expect_reference(config);
}

TEST_F(ResumeTest, ALineIsNotRecordedTwice) {
  // The checkpoint of step 5 owes the validation; a process that made it up crashes before it
  // saves.
  const Config config = make_config("twice");
  RunOptions options = quiet_options();
  options.on_step = stop_after(5, SIGTERM);
  train(config, options);
  request_stop(0);
  const Config crashed = crash_of(config, 7);
  EXPECT_EQ(metrics_of(crashed.train.out).size(), 6U);
  // So does the one of the last step, however often the finished run is started again.
  run_with_stops(crashed, {kSteps});
  EXPECT_TRUE(train(crashed).finished);
  expect_reference(crashed);
}

TEST_F(ResumeTest, AStopInTheLastValidationIsNotTheEnd) {
  const Config config = make_config("unvalidated");
  RunOptions options = quiet_options();
  options.on_step = stop_after(kSteps, SIGTERM);
  EXPECT_FALSE(train(config, options).finished);
  request_stop(0);
  EXPECT_TRUE(train(config).finished);
  expect_reference(config);
}

TEST_F(ResumeTest, AResumeOfAResume) {
  const Config config = make_config("again");
  run_with_stops(config, {1, 4, 5, 6, 10, 15, 19});
  expect_reference(config);
}

TEST_F(ResumeTest, BetweenTheLinesOfTheMetrics) {
  Config whole = make_config("lines"), stopped = make_config("lines-stopped");
  whole.train.log_every = stopped.train.log_every = 4;
  EXPECT_TRUE(train(whole).finished);
  run_with_stops(stopped, {2, 4, 7, 10});
  expect_same(trace_of(stopped.train.out), trace_of(whole.train.out));
}

TEST_F(ResumeTest, InBf16WhereWeightsAreSplit) {
  Config whole = make_config("bf16"), stopped = make_config("bf16-stopped");
  whole.train.dtype = stopped.train.dtype = DtypeKind::kBf16;
  EXPECT_TRUE(train(whole).finished);
  run_with_stops(stopped, {3, 9});
  const Trace trace = trace_of(whole.train.out);
  expect_same(trace_of(stopped.train.out), trace);
  EXPECT_NE(trace.lines.back(), reference_->lines.back()) << "another type, other numbers";
}

TEST_F(ResumeTest, AtAnyMomentInsideGradientAccumulationToo) {
  const Config config = make_config("any");
  int runs = 0;
  for (bool finished = false; !finished && runs < 100; ++runs) {
    std::thread clock([runs] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20 + 7 * runs % 30));
      request_stop(SIGINT);
    });
    // The signal may be there before the first step: a run that is stopped again and again must
    // get somewhere all the same, so this one looks after it.
    RunResult result;
    try {
      result = train(config);
    } catch (const Stopped&) {  // before the first step there is nothing to save
    }
    clock.join();
    request_stop(0);
    if (result.checkpoint.empty()) continue;
    finished = result.finished;
    if (runs % 4 == 3 && result.step < kSteps) run_with_stops(config, {result.step + 1});
  }
  expect_reference(config);
}

TEST_F(ResumeTest, AfterACrashFromTheLastSave) {
  const Config crashed = crash_of(make_config("crash"), 11);
  EXPECT_EQ(metrics_of(crashed.train.out).size(), 10u);
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(crashed.train.out)).step, 8);
  EXPECT_TRUE(train(crashed).finished);
  expect_reference(crashed);
}

TEST_F(ResumeTest, AnExceptionSavesTheLastStep) {
  const Config config = make_config("exception");
  RunOptions options = quiet_options();
  options.on_step = [](const StepMetrics& metrics) -> bool {
    if (metrics.step == 10) throw std::runtime_error("a callback's error");
    return true;
  };
  EXPECT_THROW(train(config, options), std::runtime_error);
  // Step 10 is due a validation and a line, which the resumed run makes up for.
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(config.train.out)).step, 10);
  EXPECT_EQ(metrics_of(config.train.out).size(), 9u);
  EXPECT_TRUE(train(config).finished);
  expect_reference(config);
}

TEST_F(ResumeTest, ValidationShardThatBecomesShorterSavesTheRun) {
  Config config = make_config("short-valid");
  const std::string copy = *folder_ / "copy-of-valid.shard";
  std::filesystem::copy_file(corpus_->valid, copy);
  config.data.valid = copy;
  RunOptions options = quiet_options();
  options.on_step = [&](const StepMetrics& metrics) {
    if (metrics.step == 10) std::filesystem::resize_file(copy, 300);
    return true;
  };
  EXPECT_THROW(train(config, options), DataError);
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(config.train.out)).step, 10);
  std::filesystem::copy_file(corpus_->valid, copy,
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(train(config).finished);
  expect_reference(config);
}

TEST_F(ResumeTest, TrainingShardThatBecomesShorterSavesTheRun) {
  Config config = make_config("short-train");
  const std::string copy = *folder_ / "copy-of-train.shard";
  std::filesystem::copy_file(corpus_->train, copy);
  config.data.train = {copy};
  config.data.prefetch = 0;
  config.train.save_every = 0;
  RunOptions options = quiet_options();
  options.on_step = [&](const StepMetrics& metrics) {
    if (metrics.step == 6) std::filesystem::resize_file(copy, 300);
    return true;
  };
  EXPECT_THROW(train(config, options), DataError);
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(config.train.out)).step, 6);
  std::filesystem::copy_file(corpus_->train, copy,
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(train(config).finished);
  expect_reference(config);
}

/// Of a constant learning rate, which a planned length of the run does not change.
Trace trace_of_steps(Config config, int64_t planned, int64_t steps,
                     const std::function<Trace(const std::string&)>& trace_of) {
  config.schedule.kind = ScheduleKind::kConstant;
  config.train.steps = planned;
  if (planned != steps) {
    RunOptions options = quiet_options();
    options.on_step = stop_after(steps, SIGTERM);
    EXPECT_EQ(train(config, options).step, steps);
    config.train.steps = steps;
  }
  EXPECT_TRUE(train(config).finished);
  return trace_of(config.train.out);
}

TEST_F(ResumeTest, AShortenedRunEndsAsOneThatWasPlannedSo) {
  for (const int64_t log_every : {1, 4}) {
    const auto traced = [&](const std::string& out, int64_t planned) {
      Config config = make_config(out + std::to_string(log_every));
      config.train.log_every = log_every;
      return trace_of_steps(config, planned, 6, trace_of);
    };
    const Trace straight = traced("straight", 6), shortened = traced("shortened", 7);
    EXPECT_TRUE(straight.lines.back().contains("valid_loss"));
    expect_same(shortened, straight);
    const std::string run = make_config("shortened" + std::to_string(log_every)).train.out;
    const json state = json::parse(load_checkpoint(resolve_checkpoint(run)).state_json);
    EXPECT_FALSE(state["validation_pending"].get<bool>());
    EXPECT_FALSE(state["line_pending"].get<bool>());
  }
}

TEST_F(ResumeTest, SaysWhichConfigFieldsHaveChanged) {
  Config config = make_config("changes");
  config.train.steps = 4;
  train(config);
  config.train.steps = 5;
  config.optimizer.lr = 0.005;
  RunOptions options;
  ::testing::internal::CaptureStdout();
  EXPECT_TRUE(train(config, options).finished);
  const std::string said = ::testing::internal::GetCapturedStdout();
  EXPECT_NE(said.find("config changed: /train/steps: 4 -> 5\n"), std::string::npos) << said;
  EXPECT_NE(said.find("config changed: /optimizer/lr: 0.01 -> 0.005\n"), std::string::npos) << said;
  EXPECT_EQ(said.find("/model"), std::string::npos) << said;
}

TEST_F(ResumeTest, NamesTheCheckpointsThatAChangedRetentionRemoves) {
  Config config = make_config("retention");
  config.train.steps = 20;
  config.train.keep_last = 5;
  train(config);
  const auto checkpoints = [&] {
    std::vector<std::string> names;
    for (const CheckpointSummary& summary : list_checkpoints(config.train.out + "/checkpoints")) {
      names.push_back(std::filesystem::path(summary.folder).filename());
    }
    return names;
  };
  using Names = std::vector<std::string>;
  const Names saved = checkpoints();
  ASSERT_EQ(saved, (Names{"step-00000004", "step-00000008", "step-00000012", "step-00000016",
                          "step-00000020"}));
  // What the run says, and its checkpoints at that moment.
  const auto said_by = [&](int64_t steps) {
    config.train.steps = steps;
    ::testing::internal::CaptureStderr();
    const Trainer trainer(config, quiet_options());
    EXPECT_EQ(checkpoints(), saved) << "said before anything is removed";
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(said_by(22), "") << "the usual one of five";
  config.train.keep_last = 6;
  EXPECT_EQ(said_by(22), "");
  config.train.keep_last = 2;
  config.train.keep_every = 8;
  EXPECT_EQ(said_by(22),
            "stablemask: warning: train.keep_last 5 -> 2, train.keep_every 0 -> 8: the next save "
            "removes step-00000004, step-00000012 from " +
                config.train.out +
                "/checkpoints; to keep them, stop the run and set the fields as before\n");
  EXPECT_TRUE(train(config).finished);
  EXPECT_EQ(checkpoints(),
            (Names{"step-00000008", "step-00000016", "step-00000020", "step-00000022"}));
  ::testing::internal::CaptureStderr();
  config.train.steps = 24;
  EXPECT_TRUE(train(config).finished);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "") << "the change is saved";
}

TEST_F(ResumeTest, ACorruptedNewestCheckpointFallsBackToTheOneBefore) {
  const Config config = make_config("corrupt");
  RunOptions options = quiet_options();
  options.on_step = stop_after(10, SIGTERM);
  const std::string newest = train(config, options).checkpoint;
  request_stop(0);
  std::string bytes = testing::read_file(newest + "/model.safetensors");
  bytes[bytes.size() / 2] ^= 1;
  testing::write_file(newest + "/model.safetensors", bytes);

  ::testing::internal::CaptureStderr();
  std::vector<int64_t> steps;
  options.on_step = [&](const StepMetrics& metrics) {
    steps.push_back(metrics.step);
    return true;
  };
  EXPECT_TRUE(train(config, options).finished);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(steps.front(), 9) << "from step 8";
  EXPECT_NE(said.find("model.safetensors"), std::string::npos) << said;
  expect_reference(config);
}

TEST_F(ResumeTest, FromANamedCheckpointIntoAnotherFolder) {
  const Config reference = make_config("reference");
  const Config config = make_config("named");
  RunOptions options = quiet_options(ResumePolicy::kFolder);
  options.resume_folder = reference.train.out + "/checkpoints/step-00000016";
  std::vector<int64_t> steps;
  options.on_step = [&](const StepMetrics& metrics) {
    steps.push_back(metrics.step);
    return true;
  };
  EXPECT_TRUE(train(config, options).finished);
  EXPECT_EQ(steps.front(), 17);
  EXPECT_EQ(trace_of(config.train.out).tensors, reference_->tensors);
  // Back to an older one would orphan the newer.
  EXPECT_THROW(Trainer(config, options), CheckpointError);
}

TEST_F(ResumeTest, AChangedFrozenFieldIsRefusedWithTheDifference) {
  Config config = make_config("frozen");
  run_with_stops(config, {});
  const std::map<std::string, std::string> before = tensors_of(config.train.out);
  config.train.batch = 4;
  config.train.seed = 7;
  try {
    Trainer trainer(config, quiet_options());
    FAIL() << "resumed with another batch";
  } catch (const ConfigError& error) {
    const std::string said = error.what();
    EXPECT_NE(said.find("/train/batch: 8 -> 4"), std::string::npos) << said;
    EXPECT_NE(said.find("/train/seed: 1337 -> 7"), std::string::npos) << said;
    EXPECT_EQ(said.find('\n'), std::string::npos);
  }
  EXPECT_EQ(tensors_of(config.train.out), before);
}

TEST_F(ResumeTest, OtherDataAreRefusedAndMoreStepsAreNot) {
  Config config = make_config("more");
  run_with_stops(config, {});
  config.data.train = {corpus_->valid};
  EXPECT_THROW(Trainer(config, quiet_options()), DataError);
  config.data.train = {corpus_->train};
  config.train.steps = kSteps + 2;
  config.optimizer.lr /= 2;
  EXPECT_EQ(train(config).step, kSteps + 2);
}

TEST_F(ResumeTest, WeightsAloneAreNotEnough) {
  const Config config = make_config("weights");
  Checkpoint source = load_checkpoint(resolve_checkpoint(make_config("reference").train.out));
  CheckpointContent content;
  content.step = source.step;
  content.model = source.model.tensors();
  content.state_json = source.state_json;
  content.config_json = source.config_json;
  content.tokenizer_model = source.tokenizer_model;
  save_checkpoint(config.train.out + "/checkpoints", content, {});
  EXPECT_THROW(Trainer(config, quiet_options()), CheckpointError);
}

TEST_F(ResumeTest, GpuRunsThatAreDeterministicResumeBitForBitToo) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  const auto gpu_config = [](const std::string& out) {
    json json = testing::tiny_json(*corpus_, *folder_ / out);
    json["model"] = {{"layers", 2}, {"channels", 64}, {"heads", 2}, {"ffn_hidden", 128}};
    json["train"]["device"] = "cuda";
    json["train"]["deterministic"] = true;
    json["train"]["context"] = 64;
    return parse_config(json.dump(), "tiny");
  };
  const Config straight = gpu_config("gpu-straight"), stopped = gpu_config("gpu-stopped");
  train(straight);
  run_with_stops(stopped, {3, 4, 9});
  EXPECT_EQ(tensors_of(stopped.train.out), tensors_of(straight.train.out));
}

}  // namespace
}  // namespace stablemask
