// Steps with fp8 products on a GPU.
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "stablemask/base/error.h"
#include "stablemask/ops/fp8.h"
#include "tests/train/steps.h"

namespace stablemask {
namespace {

using namespace testing_steps;

constexpr int64_t kRows = 4, kColumns = 128;

class GpuFp8Step : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    const std::string problem = ops::fp8::problem(at::kCUDA);
    if (!problem.empty()) GTEST_SKIP() << problem;
    ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
    at::globalContext().setDeterministicAlgorithms(true, false);
  }
  void TearDown() override { at::globalContext().setDeterministicAlgorithms(false, false); }

  static Config config(Precision precision = Precision::kFp8) {
    Config config;
    config.model = fast_model(kColumns);
    config.optimizer.weight_decay = 0.01;
    config.train.precision = precision;
    return config;
  }

  struct Trace {
    std::vector<double> losses, norms;
    Weights master, scales;
    bool used_graph = false;
  };

  static Trace train(const Config& config, int64_t steps = 10, int64_t micro_batches = 1) {
    TinyTraining run(config, at::kCUDA, at::kBFloat16);
    Trace trace;
    for (int64_t step = 1; step <= steps; ++step) {
      const auto result = run.step(split(batch(kRows, kColumns, step), micro_batches), 3e-3);
      EXPECT_TRUE(result.updated);
      trace.losses.push_back(result.loss);
      trace.norms.push_back(result.grad_norm);
    }
    trace.master = run.master();
    if (run.model->fp8) trace.scales = copy(run.model->fp8->state());
    trace.used_graph = run.program.uses_graph();
    return trace;
  }

  static void expect_equal(const Trace& a, const Trace& b) {
    EXPECT_EQ(a.losses, b.losses);
    EXPECT_EQ(a.norms, b.norms);
    EXPECT_TRUE(same_bits(a.master, b.master));
    EXPECT_TRUE(same_bits(a.scales, b.scales));
  }

  /// The task is learned to 0.01 nats, where losses are told apart by their difference only.
  static void expect_close(const Trace& a, const Trace& b) {
    for (size_t i = 0; i < a.losses.size(); ++i) {
      EXPECT_NEAR(a.losses[i], b.losses[i], 0.04 * b.losses[i] + 0.05) << "step " << i + 1;
    }
  }
};

TEST_F(GpuFp8Step, RecordedGraphGivesTheBitsOfThePlainStream) {
  for (const testing_models::Family* family :
       {static_cast<const testing_models::Family*>(nullptr), &testing_models::kFamilies[1],
        &testing_models::kFamilies[2]}) {
    SCOPED_TRACE(family ? family->name : "Llama");
    Config graph = config();
    if (family) {
      family->change(graph.model);
      graph.model.head_dim = 64;
    }
    Config plain = graph;
    plain.train.cuda_graph = false;
    for (const int64_t micro_batches : {1, 2}) {
      const Trace recorded = train(graph, 10, micro_batches);
      EXPECT_TRUE(recorded.used_graph);
      expect_equal(recorded, train(plain, 10, micro_batches));
      expect_equal(recorded, train(graph, 10, micro_batches));
    }
  }
}

TEST_F(GpuFp8Step, TrainsAsBf16AndAsTheFormulasDo) {
  const Trace exact = train(config(Precision::kDtype), 30);
  Config fp8 = config();
  for (const Fp8Gradients gradients : {Fp8Gradients::kE5M2, Fp8Gradients::kE4M3}) {
    fp8.train.fp8_gradients = gradients;
    fp8.train.reference_ops = false;
    const Trace fused = train(fp8, 30);
    expect_close(fused, exact);
    EXPECT_NE(fused.losses[0], exact.losses[0]);
    fp8.train.reference_ops = true;
    expect_close(fused, train(fp8, 30));
  }
}

TEST_F(GpuFp8Step, ActivationCheckpointingGivesTheSameBits) {
  Config kept = config(), recomputed = config();
  recomputed.train.activation_checkpointing = true;
  expect_equal(train(kept, 8, 2), train(recomputed, 8, 2));
}

TEST_F(GpuFp8Step, NeedsBf16AndSoDoBf16Products) {
  for (const Precision precision : {Precision::kFp8, Precision::kBf16}) {
    try {
      TinyTraining run(config(precision), at::kCUDA, at::kFloat);
      FAIL() << "with fp32";
    } catch (const ConfigError& error) {
      const std::string name = precision == Precision::kFp8 ? "fp8" : "bf16";
      EXPECT_EQ(error.what(),
                "/train/dtype: train.precision \"" + name + "\" needs \"bf16\" on a GPU");
    }
  }
}

}  // namespace
}  // namespace stablemask
