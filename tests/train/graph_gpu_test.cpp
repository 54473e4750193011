#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <functional>

#include "stablemask/base/error.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/memory.h"
#include "tests/train/steps.h"

namespace stablemask {
namespace {

using namespace testing_steps;

constexpr int64_t kRows = 4, kColumns = 128;

class GpuGraph : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

/// Fails while recording, where a step would, and hands on what came out.
void record_and_fail(ops::Graph& graph, const std::function<void()>& failure) {
  const ops::Graph::OnItsStream on_stream(graph);
  graph.record([&] {
    const at::Tensor x = at::ones({64, 64}, at::TensorOptions(at::kFloat).device(at::kCUDA));
    const at::Tensor y = x + 1;
    failure();
  });
}

/// Plain work in the usual stream, and a graph from its recording to its replay.
void expect_device_serves(ops::Graph& graph) {
  const at::Tensor x = at::ones({64, 64}, at::TensorOptions(at::kFloat).device(at::kCUDA));
  EXPECT_EQ((x + x).sum().item<float>(), 2 * 64 * 64);
  const ops::Graph::OnItsStream on_stream(graph);
  const at::Tensor y = at::zeros_like(x);
  graph.record([&] { y.copy_(x * 3); });
  EXPECT_TRUE(graph.recorded());
  graph.replay();
  EXPECT_EQ(y.sum().item<float>(), 3 * 64 * 64);
}

TEST_F(GpuGraph, MemoryThatRunsOutWhileRecordingIsReportedAsSuch) {
  ops::Graph graph(at::kCUDA);
  const auto too_much = [] {
    at::empty({int64_t{1} << 50}, at::TensorOptions(at::kByte).device(at::kCUDA));
  };
  EXPECT_THROW(
      ops::with_memory_hint("lower something", [&] { return record_and_fail(graph, too_much); }),
      OutOfMemoryError);
  EXPECT_FALSE(graph.recorded());
  expect_device_serves(graph);
}

TEST_F(GpuGraph, ExceptionsPassThroughARecording) {
  ops::Graph graph(at::kCUDA);
  EXPECT_THROW(record_and_fail(graph, [] { TORCH_CHECK(false, "a contract"); }), c10::Error);
  EXPECT_THROW(record_and_fail(graph, [] { throw ConfigError("no error of LibTorch's"); }),
               ConfigError);
  EXPECT_FALSE(graph.recorded());
  expect_device_serves(graph);
}

TEST_F(GpuGraph, FailedRecordingInAStepLeavesTheProgramAbleToGoOn) {
  Config config;
  config.model = fast_model(kColumns);
  TinyTraining run(config, at::kCUDA, at::kBFloat16);
  for (int64_t step = 1; step <= 3; ++step) run.step({batch(kRows, kColumns, step)});
  EXPECT_FALSE(run.program.uses_graph());
  ops::Graph other(at::kCUDA);
  EXPECT_THROW(record_and_fail(other, [] { TORCH_CHECK(false, "a contract"); }), c10::Error);
  for (int64_t step = 4; step <= 6; ++step) {
    EXPECT_TRUE(run.step({batch(kRows, kColumns, step)}).updated);
  }
  EXPECT_TRUE(run.program.uses_graph());
}

/// LibTorch's random numbers on a GPU serve again behind the next recording, not before.
TEST_F(GpuGraph, OperationThatNoGraphCanHoldIsAnErrorToo) {
  ops::Graph graph(at::kCUDA), next(at::kCUDA);
  const auto waits = [] {
    at::zeros({1}, at::TensorOptions(at::kFloat).device(at::kCUDA)).item<float>();
  };
  EXPECT_THROW(record_and_fail(graph, waits), c10::Error);
  EXPECT_FALSE(graph.recorded());
  expect_device_serves(next);
}

}  // namespace
}  // namespace stablemask
