#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <functional>

#include "src/train/mask_warmup.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/memory.h"
#include "stablemask/ops/optimizer.h"
#include "stablemask/train/step.h"
#include "tests/train/steps.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

namespace run_files = stablemask::testing;
using namespace testing_steps;

constexpr int64_t kRows = 4, kColumns = 128;

Config gpu_config() {
  Config config;
  config.model = fast_model(kColumns);
  config.optimizer.weight_decay = 0.01;
  return config;
}

/// What a run leaves behind.
struct Trace {
  std::vector<double> losses, norms;
  Weights master, moments, averages;
  bool used_graph = false;

  bool operator==(const Trace& other) const {
    return losses == other.losses && norms == other.norms && same_bits(master, other.master) &&
           same_bits(moments, other.moments) && same_bits(averages, other.averages);
  }
};

/// Of the two runs' losses at any step.
double largest_gap(const Trace& a, const Trace& b) {
  double gap = 0;
  for (size_t i = 0; i < a.losses.size(); ++i) {
    gap = std::max(gap, std::fabs(a.losses[i] - b.losses.at(i)));
  }
  return gap;
}

class GpuStep : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  }
  void TearDown() override {
    at::globalContext().setDeterministicAlgorithms(false, false);
    request_stop(0);
  }

  static void deterministic() { at::globalContext().setDeterministicAlgorithms(true, false); }

  static Trace train(const Config& config, int64_t steps, int64_t micro_batches = 1,
                     at::Device device = at::kCUDA, at::ScalarType compute = at::kBFloat16,
                     int64_t columns = kColumns) {
    TinyTraining run(config, device, compute);
    Trace trace;
    for (int64_t step = 1; step <= steps; ++step) {
      const auto result = run.step(split(batch(kRows, columns, step), micro_batches), 3e-3);
      EXPECT_TRUE(result.updated);
      trace.losses.push_back(result.loss);
      trace.norms.push_back(result.grad_norm);
    }
    trace.master = run.master();
    trace.moments = run.moments();
    trace.averages = run.averages();
    trace.used_graph = run.program.uses_graph();
    return trace;
  }

  /// Eight steps by a recorded graph, by plain launches, and by a graph once more.
  static void expect_graph_equals_stream(Config config, int64_t micro_batches = 1) {
    config.train.cuda_graph = true;
    const Trace graph = train(config, 8, micro_batches);
    const Trace again = train(config, 8, micro_batches);
    config.train.cuda_graph = false;
    const Trace plain = train(config, 8, micro_batches);
    EXPECT_TRUE(graph.used_graph);
    EXPECT_FALSE(plain.used_graph);
    EXPECT_EQ(graph.losses, plain.losses);
    EXPECT_EQ(graph.norms, plain.norms);
    EXPECT_TRUE(graph == plain);
    EXPECT_TRUE(graph == again);
  }
};

TEST_F(GpuStep, RecordedGraphGivesTheBitsOfThePlainStream) {
  deterministic();
  Config config = gpu_config();
  expect_graph_equals_stream(config);
  config.model.position = Position::kAlibi;
  config.model.kv_heads = 1;
  config.model.stable_mask.mask_length = {MaskLengthSpec::Kind::kInfinite, 0};
  expect_graph_equals_stream(config);
}

TEST_F(GpuStep, RecordedGraphGivesTheBitsOfThePlainStreamForEveryFamily) {
  deterministic();
  for (const testing_models::Family& family : testing_models::kFamilies) {
    SCOPED_TRACE(family.name);
    Config config = gpu_config();
    family.change(config.model);
    config.model.head_dim = 64;
    expect_graph_equals_stream(config);
  }
}

TEST_F(GpuStep, AverageOfTheWeightsIsTheFormulaInTheGraphToo) {
  deterministic();
  Config config = gpu_config();
  config.train.ema_decay = 0.8;
  expect_graph_equals_stream(config);
  for (const at::ScalarType compute : {at::kBFloat16, at::kFloat}) {
    TinyTraining run(config, at::kCUDA, compute);
    Weights want;
    for (const auto& [name, value] : run.master()) want[name] = value.to(at::kDouble);
    for (int64_t step = 1; step <= 12; ++step) {
      run.step({batch(kRows, kColumns, step)}, 3e-3);
      const auto t = static_cast<double>(step);
      const double d = std::min(0.8, (1 + t) / (10 + t));
      for (const auto& [name, value] : run.master()) want[name].mul_(d).add_(value, 1 - d);
      // In between the model computes with the average, and has its bits back afterwards.
      const Weights before = run.master();
      run.program.use_averages();
      EXPECT_TRUE(same_bits(run.master(), before)) << "step " << step;
    }
    EXPECT_TRUE(run.program.uses_graph());
    for (const auto& [name, value] : run.averages()) {
      EXPECT_LT((value - want.at(name)).norm().item<double>(),
                3e-7 * want.at(name).norm().item<double>())
          << name;
    }
  }
}

TEST_F(GpuStep, RecordedGraphGivesTheBitsOfThePlainStreamWithBf16State) {
  deterministic();
  Config config = gpu_config();
  config.optimizer.state = StateDtype::kBf16;
  expect_graph_equals_stream(config);
  const Trace bf16 = train(config, 8);
  config.optimizer.state = StateDtype::kFp32;
  const Trace fp32 = train(config, 8);
  EXPECT_EQ(bf16.moments.at("m.head").scalar_type(), at::kBFloat16);
  EXPECT_NE(bf16.losses, fp32.losses);
  EXPECT_LT(largest_gap(bf16, fp32), 0.02);
}

/// While the first GPU is the current one.
TEST_F(GpuStep, SecondGpuGivesTheBitsOfTheFirst) {
  const at::Device second_gpu(at::kCUDA, 1);
  if (ops::gpu_count() < 2 || ops::device_name(second_gpu) != ops::device_name(at::kCUDA)) {
    GTEST_SKIP() << "needs two GPUs of one kind";
  }
  deterministic();
  const Trace first = train(gpu_config(), 8), second = train(gpu_config(), 8, 1, second_gpu);
  EXPECT_TRUE(second.used_graph);
  EXPECT_EQ(second.losses, first.losses);
  EXPECT_TRUE(second == first);
}

TEST_F(GpuStep, GraphHoldsAllMicroBatches) {
  deterministic();
  expect_graph_equals_stream(gpu_config(), 2);
  const Trace whole = train(gpu_config(), 8), quarters = train(gpu_config(), 8, 4);
  // Sums of bf16 products in another order: as far apart as bf16 rounds, 2^-8.
  for (size_t i = 0; i < whole.losses.size(); ++i) {
    EXPECT_NEAR(quarters.losses[i], whole.losses[i], whole.losses[i] / 256);
  }
}

TEST_F(GpuStep, FastAttentionInAGraphStaysWithinRounding) {
  // Short rows are one or two tiles of keys, and the sum of two is the same in either order.
  expect_graph_equals_stream(gpu_config());
  // Over longer ones cuDNN's backward promises no order, so that equal runs may differ in the last
  // bits of bf16 gradients: 2^-8.
  Config config = gpu_config();
  const auto long_rows = [&] { return train(config, 8, 1, at::kCUDA, at::kBFloat16, 1024); };
  const Trace graph = long_rows();
  config.train.cuda_graph = false;
  const Trace plain = long_rows();
  EXPECT_TRUE(graph.used_graph);
  for (size_t i = 0; i < plain.losses.size(); ++i) {
    EXPECT_NEAR(graph.losses[i], plain.losses[i], plain.losses[i] / 256) << "step " << i + 1;
  }
}

TEST_F(GpuStep, DeterministicModeHasEqualBitsOverLongRows) {
  deterministic();
  Config config = gpu_config();
  const auto long_rows = [&] { return train(config, 6, 1, at::kCUDA, at::kBFloat16, 2048); };
  const Trace graph = long_rows(), again = long_rows();
  config.train.cuda_graph = false;
  EXPECT_TRUE(graph.used_graph);
  EXPECT_TRUE(graph == again);
  EXPECT_TRUE(graph == long_rows());
}

TEST_F(GpuStep, LearnableMaskTrainsInTheGraph) {
  deterministic();
  Config config = gpu_config();
  config.model.stable_mask.learnable = true;
  const Weights start = TinyTraining(config, at::kCUDA, at::kBFloat16).master();
  const Trace trace = train(config, 8);
  EXPECT_TRUE(trace.used_graph);
  for (const char* name : {"gamma_raw", "p_base"}) {
    for (const char* block : {"blocks.0", "blocks.1"}) {
      const std::string key = std::string(block) + ".attention.stable_mask." + name;
      EXPECT_GT(trace.moments.at("v." + key).min().item<double>(), 0) << key;
      EXPECT_FALSE(trace.master.at(key).equal(start.at(key))) << key;
    }
  }
  expect_graph_equals_stream(config);
  // The attention of the fast mode; short rows, so that equal runs have equal bits.
  at::globalContext().setDeterministicAlgorithms(false, false);
  expect_graph_equals_stream(config);
}

/// The recorded step reads the strength of the mask of each replay.
TEST_F(GpuStep, MaskWarmupGoesOnInTheGraph) {
  deterministic();
  for (const bool learnable : {false, true}) {
    Config config = gpu_config();
    config.model.stable_mask.learnable = learnable;
    const auto losses = [&](bool graph, int64_t steps) {
      config.train.cuda_graph = graph;
      TinyTraining run(config, at::kCUDA, at::kBFloat16);
      MaskWarmup warmup(run.model, at::kCUDA, steps, 0);
      std::vector<double> all;
      for (int64_t step = 1; step <= 8; ++step) {
        warmup.begin(step);
        all.push_back(run.step({batch(kRows, kColumns, step)}, 0.0).loss);
      }
      EXPECT_EQ(run.program.uses_graph(), graph);
      return all;
    };
    const std::vector<double> ramp = losses(true, 7), whole = losses(true, 0);
    EXPECT_EQ(ramp, losses(false, 7));
    for (size_t i = 0; i < 6; ++i) EXPECT_NE(ramp[i], whole[i]) << i;
    for (size_t i = 6; i < 8; ++i) EXPECT_EQ(ramp[i], whole[i]) << i;
  }
}

TEST_F(GpuStep, LossCurveFollowsTheCpusInSinglePrecision) {
  constexpr int64_t kSteps = 40;
  const Config config = gpu_config();
  const Trace exact = train(config, kSteps, 1, at::kCPU, at::kFloat);
  const Trace rounded = train(config, kSteps, 1, at::kCPU, at::kBFloat16);
  const Trace gpu = train(config, kSteps);
  EXPECT_LT(exact.losses.back(), 0.3 * exact.losses.front()) << "the task is to be learnt";
  // What bf16 costs in plain kernels is the yardstick, of the whole curve: single steps wobble.
  EXPECT_LE(largest_gap(gpu, exact), 2 * largest_gap(rounded, exact) + 0.005);
}

TEST_F(GpuStep, LossCurveFollowsTheReferenceOnTheSameDevice) {
  constexpr int64_t kSteps = 40;
  Config config = gpu_config();
  const Trace fused = train(config, kSteps), exact = train(config, kSteps, 1, at::kCPU, at::kFloat);
  config.train.reference_ops = true;
  const Trace reference = train(config, kSteps);
  EXPECT_TRUE(fused.used_graph);
  EXPECT_FALSE(reference.used_graph);
  EXPECT_LE(largest_gap(fused, exact), 2 * largest_gap(reference, exact) + 0.005);
}

/// Matrices with and without a side that is a multiple of 256, which decides about the products.
TEST_F(GpuStep, MuonTrainsTheSameBitsByGraphAndStreamAndFollowsTheCpu) {
  deterministic();
  for (const int64_t channels : {128, 256}) {
    SCOPED_TRACE(channels);
    Config config = gpu_config();
    config.optimizer.kind = OptimizerKind::kMuon;
    config.model.channels = channels;
    config.model.heads = channels / 64;
    config.model.ffn_hidden = channels + 128;
    expect_graph_equals_stream(config);
    constexpr int64_t kSteps = 20;
    const Trace exact = train(config, kSteps, 1, at::kCPU, at::kFloat);
    const Trace gpu = train(config, kSteps);
    EXPECT_LT(exact.losses.back(), 0.5 * exact.losses.front()) << "the task is to be learnt";
    EXPECT_LE(largest_gap(gpu, exact), 0.05 * exact.losses.front());
  }
}

TEST_F(GpuStep, WeightsAreTheRoundedMaster) {
  TinyTraining run(gpu_config(), at::kCUDA, at::kBFloat16);
  for (int64_t step = 1; step <= 6; ++step) run.step({batch(kRows, kColumns, step)});
  EXPECT_TRUE(run.program.uses_graph());
  const auto master = run.flat->master();
  for (const auto& item : run.model->named_parameters()) {
    const at::Tensor rounded = ops::split_weights(master.at(item.key())).rounded;
    EXPECT_TRUE(item.value().cpu().equal(rounded)) << item.key();
  }
}

TEST_F(GpuStep, NonFiniteStepTouchesNothing) {
  // Before the graph exists, and by the graph.
  for (const int64_t steps_before : {1, 6}) {
    TinyTraining run(gpu_config(), at::kCUDA, at::kBFloat16);
    for (int64_t step = 1; step <= steps_before; ++step) run.step({batch(kRows, kColumns, step)});
    EXPECT_EQ(run.program.uses_graph(), steps_before > 3);
    run.poison();
    const Weights master = run.master(), moments = run.moments();
    const auto bad = run.step({poisoned(batch(kRows, kColumns, 7))});
    EXPECT_FALSE(bad.updated);
    EXPECT_FALSE(std::isfinite(bad.loss));
    EXPECT_TRUE(same_bits(run.master(), master));
    EXPECT_TRUE(same_bits(run.moments(), moments));
    EXPECT_TRUE(run.step({batch(kRows, kColumns, 8)}).updated);
    EXPECT_FALSE(same_bits(run.moments(), moments));
  }
}

TEST_F(GpuStep, DocumentsRunPlainlyAndFollowTheCpu) {
  Config config = gpu_config();
  config.data.document_mask = true;
  TinyTraining gpu(config, at::kCUDA, at::kBFloat16), cpu(config, at::kCPU, at::kFloat);
  for (int64_t step = 1; step <= 6; ++step) {
    Batch whole = batch(kRows, kColumns, step);
    for (int64_t i = 0; i < kRows * kColumns; ++i) {
      const int64_t column = i % kColumns, cut = 20 + step * (1 + i / kColumns);
      whole.document_start.push_back(column < cut ? 0 : cut);
    }
    const auto found = gpu.step({whole}, 3e-3), wanted = cpu.step({whole}, 3e-3);
    EXPECT_TRUE(found.updated);
    EXPECT_NEAR(found.loss, wanted.loss, wanted.loss / 128) << "step " << step;
  }
  EXPECT_FALSE(gpu.program.uses_graph());
}

TEST_F(GpuStep, AMicroBatchWithoutTargetsAddsNothing) {
  TinyTraining alone(gpu_config(), at::kCUDA, at::kBFloat16),
      both(gpu_config(), at::kCUDA, at::kBFloat16);
  for (int64_t step = 1; step <= 6; ++step) {
    const Batch whole = batch(kRows, kColumns, step);
    Batch none = whole;
    std::ranges::fill(none.targets, kIgnoreTarget);
    none.valid_targets = 0;
    const auto wanted = alone.step({whole}, 3e-3), found = both.step({none, whole}, 3e-3);
    EXPECT_TRUE(found.updated);
    EXPECT_NEAR(found.loss, wanted.loss, wanted.loss / 128) << "step " << step;
  }
  EXPECT_TRUE(both.program.uses_graph());
}

TEST_F(GpuStep, GraphReadsTheCountOfValidTargets) {
  deterministic();
  const auto losses = [](bool cuda_graph) {
    Config config = gpu_config();
    config.train.cuda_graph = cuda_graph;
    TinyTraining run(config, at::kCUDA, at::kBFloat16);
    std::vector<double> found;
    for (int64_t step = 1; step <= 8; ++step) {
      Batch masked = batch(kRows, kColumns, step);
      for (int64_t i = 0; i < 10 * step; ++i) masked.targets[i] = kIgnoreTarget;
      masked.valid_targets -= 10 * step;
      const auto result = run.step({masked}, 3e-3);
      EXPECT_EQ(result.valid_targets, kRows * kColumns - 10 * step);
      found.push_back(result.loss);
    }
    EXPECT_EQ(run.program.uses_graph(), cuda_graph);
    return found;
  };
  EXPECT_EQ(losses(true), losses(false));
}

TEST_F(GpuStep, EvaluationOfLongerWindowsDoesNotDisturbTheGraph) {
  deterministic();
  const auto losses = [](bool evaluates) {
    TinyTraining run(gpu_config(), at::kCUDA, at::kBFloat16);
    std::vector<double> found;
    std::vector<at::Tensor> held;
    for (int64_t step = 1; step <= 8; ++step) {
      found.push_back(run.step({batch(kRows, kColumns, step)}, 3e-3).loss);
      if (!evaluates || step != 6) continue;
      const Batch text = batch(1, 4 * kColumns, 99);
      run.model->token_nll(tensor_of(text, text.tokens).to(at::kCUDA),
                           tensor_of(text, text.targets).to(at::kCUDA));
      // Whatever memory was given back now holds something else.
      const auto like = at::TensorOptions(at::kFloat).device(at::kCUDA);
      for (int i = 0; i < 64; ++i) held.push_back(at::full({kColumns, 64}, NAN, like));
    }
    return found;
  };
  EXPECT_EQ(losses(true), losses(false));
}

TEST_F(GpuStep, ActivationCheckpointingSavesMemoryAndKeepsTheBits) {
  deterministic();
  constexpr int64_t kLong = 16 * kColumns;
  Config config = gpu_config();
  config.model.layers = 8;
  const auto peak_of = [](const Config& wanted, Trace& trace) {
    at::getDeviceAllocator(at::kCUDA)->emptyCache();
    at::getDeviceAllocator(at::kCUDA)->resetPeakStats(0);
    const int64_t before = ops::peak_memory_bytes(at::kCUDA);
    trace = train(wanted, 6, 1, at::kCUDA, at::kBFloat16, kLong);
    return ops::peak_memory_bytes(at::kCUDA) - before;
  };
  Trace kept, recomputed;
  const int64_t without = peak_of(config, kept);
  config.train.activation_checkpointing = true;
  const int64_t with = peak_of(config, recomputed);
  EXPECT_TRUE(recomputed.used_graph);
  EXPECT_TRUE(kept == recomputed);
  // Of all blocks but one: the projection, the attention's output, the hidden and its input.
  const ModelConfig& model = config.model;
  const int64_t numbers = 4 * model.channels + 3 * model.ffn_hidden;
  EXPECT_GT(without - with, (model.layers - 1) * kRows * kLong * numbers * 2);
  RecordProperty("bytes", std::to_string(without));
  RecordProperty("bytes_with_checkpointing", std::to_string(with));
  expect_graph_equals_stream(config, 2);
}

TEST_F(GpuStep, StoppedAndResumedRunHasTheBitsOfAnUninterruptedOne) {
  const run_files::TinyCorpus corpus;
  const run_files::TemporaryFolder folder;
  const auto config_of = [&](const std::string& out) {
    Config config = run_files::tiny_config(corpus, folder / out);
    config.model.channels = 128;
    config.train.device = DeviceKind::kCuda;
    config.train.deterministic = true;
    config.train.context = 64;
    config.train.eval_every = 6;
    config.train.steps = 14;
    config.train.ema_decay = 0.9;
    return config;
  };
  const RunOptions options = run_files::quiet_options();
  const RunResult whole = Trainer(config_of("whole"), options).run();
  RunOptions stopping = options;
  stopping.on_step = [](const StepMetrics& metrics) {
    if (metrics.step == 5 || metrics.step == 9) request_stop(SIGTERM);
    return true;
  };
  RunResult parts;
  for (int i = 0; i < 3; ++i) {
    parts = Trainer(config_of("parts"), stopping).run();
    request_stop(0);
  }
  ASSERT_TRUE(whole.finished);
  ASSERT_TRUE(parts.finished);
  EXPECT_EQ(whole.last_loss, parts.last_loss);
  EXPECT_EQ(whole.valid_loss, parts.valid_loss);
  EXPECT_EQ(run_files::tensors_of(folder / "whole"), run_files::tensors_of(folder / "parts"));
}

}  // namespace
}  // namespace stablemask
