// Steps of several real processes: this binary starts itself. On GPUs each has its own; on the CPU
// two show that the test works.
#include <ATen/Context.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "src/train/snapshot.h"
#include "stablemask/dist/connect.h"
#include "stablemask/io/safetensors.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/memory.h"
#include "tests/data/tiny_corpus.h"
#include "tests/dist/free_port.h"
#include "tests/train/steps.h"

extern char** environ;

namespace stablemask {
namespace {

using nlohmann::json;
using namespace testing_steps;

constexpr const char* kTask = "STABLEMASK_TEST_PROCESS";
constexpr int64_t kRows = 8, kColumns = 128, kSteps = 8;

Config config_of(const json& task) {
  Config config;
  config.model = fast_model(kColumns);
  config.model.layers = 4;
  config.model.stable_mask.learnable = true;
  config.model.tied_head = task.value("tied", false);
  config.optimizer.clip_norm = task.value("clip", 1.0);
  config.train.cuda_graph = task.value("graph", true);
  config.train.activation_checkpointing = task.value("checkpointing", false);
  config.train.freeze_layers = task.value("frozen", 0);
  if (!task.value("shard", true)) config.train.shard = ShardKind::kNone;
  if (task.value("bf16", false)) config.train.reduce_dtype = ReduceDtype::kBf16;
  if (task.value("fp8", false)) config.train.precision = Precision::kFp8;
  if (task.value("muon", false)) config.optimizer.kind = OptimizerKind::kMuon;
  if (task.value("bf16_state", false)) config.optimizer.state = StateDtype::kBf16;
  return config;
}

/// What a process of `task` does; it leaves its results in the folder `out`.
void run_task(const json& task) {
  at::globalContext().setDeterministicAlgorithms(true, false);
  const int64_t rank = task.at("rank"), size = task.at("size");
  const bool on_gpu = task.at("gpu");
  const at::Device device =
      on_gpu ? at::Device(at::kCUDA, static_cast<at::DeviceIndex>(rank)) : at::Device(at::kCPU);
  ops::use_device(device);
  std::shared_ptr<dist::Group> group = dist::single_process_group();
  if (size > 1) {
    dist::ConnectOptions options;
    options.world = {rank, size, rank, size, "", "127.0.0.1", task.at("port"), false, ""};
    options.device = device;
    options.timeout_s = 60;
    options.end_process = true;
    group = dist::connect(options);
  }
  TinyTraining run(config_of(task), device, on_gpu ? at::kBFloat16 : at::kFloat, group);
  json result = {{"losses", json::array()}, {"norms", json::array()}};
  for (int64_t step = 1; step <= kSteps; ++step) {
    const std::vector<Batch> all = split(batch(kRows, kColumns, step), task.at("micro_batches"));
    std::vector<Batch> own;
    for (size_t i = rank; i < all.size(); i += size) own.push_back(all[i]);
    const StepProgram::Result taken = run.step(own, 3e-3);
    EXPECT_TRUE(taken.updated);
    result["losses"].push_back(taken.loss);
    result["norms"].push_back(taken.grad_norm);
  }
  EXPECT_EQ(run.program.uses_graph(), on_gpu && task.value("graph", true));
  result["peak_bytes"] = ops::peak_memory_bytes(device);
  const std::string out = task.at("out");
  Weights tensors = run.master();
  tensors.merge(run.moments());
  if (rank == 0) write_safetensors(out + "tensors", HostTensors(tensors).views());
  std::ofstream(out + std::to_string(rank)) << result;
}

/// Started by the other tests.
TEST(Process, DISABLED_Runs) {
  const char* task = std::getenv(kTask);
  ASSERT_NE(task, nullptr) << "the task is missing";
  run_task(json::parse(task));
}

pid_t start(const json& task) {
  std::string variable = std::string(kTask) + "=" + task.dump();
  std::string workspace = "CUBLAS_WORKSPACE_CONFIG=:4096:8";
  std::vector<char*> variables = {variable.data(), workspace.data()};
  for (char** entry = environ; *entry; ++entry) variables.push_back(*entry);
  variables.push_back(nullptr);
  std::string program = "/proc/self/exe", filter = "--gtest_filter=Process.DISABLED_Runs",
              all = "--gtest_also_run_disabled_tests", brief = "--gtest_brief=1";
  std::vector<char*> arguments = {program.data(), filter.data(), all.data(), brief.data(), nullptr};
  pid_t pid = 0;
  EXPECT_EQ(
      ::posix_spawn(&pid, program.c_str(), nullptr, nullptr, arguments.data(), variables.data()),
      0);
  return pid;
}

/// What the processes of a task leave behind.
struct Trace {
  std::vector<double> losses, norms;
  double peak_bytes = 0;  ///< of process 0
  std::string tensors;    ///< master weights and moments, as a file
};

/// Runs `task` in `size` processes, whose losses and norms must be equal.
Trace run(int64_t size, json task, bool on_gpu) {
  const testing::TemporaryFolder folder;
  task["size"] = size;
  task["gpu"] = on_gpu;
  task["port"] = testing::free_port();
  task["out"] = folder / "";
  if (!task.contains("micro_batches")) task["micro_batches"] = kRows / 2;
  std::vector<pid_t> pids;
  for (int64_t rank = 0; rank < size; ++rank) {
    task["rank"] = rank;
    pids.push_back(start(task));
  }
  for (int64_t rank = 0; rank < size; ++rank) {
    int status = 0;
    EXPECT_EQ(::waitpid(pids[rank], &status, 0), pids[rank]);
    EXPECT_EQ(status, 0) << "process " << rank << " of " << task;
  }
  Trace trace;
  for (int64_t rank = 0; rank < size; ++rank) {
    std::ifstream file(folder / std::to_string(rank));
    const json result = json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (result.is_discarded()) {
      ADD_FAILURE() << "no result of process " << rank << " of " << task;
      return trace;
    }
    const std::vector<double> losses = result.at("losses"), norms = result.at("norms");
    if (rank == 0) {
      trace.losses = losses;
      trace.norms = norms;
      trace.peak_bytes = result.at("peak_bytes");
    }
    EXPECT_EQ(losses, trace.losses) << "process " << rank;
    EXPECT_EQ(norms, trace.norms) << "process " << rank;
  }
  trace.tensors = testing::read_file(folder / "tensors");
  return trace;
}

void expect_same_bits(const Trace& found, const Trace& wanted) {
  EXPECT_EQ(found.losses, wanted.losses);
  EXPECT_EQ(found.norms, wanted.norms);
  EXPECT_GT(found.tensors.size(), 100000u);
  EXPECT_TRUE(found.tensors == wanted.tensors);
}

void expect_close(const Trace& found, const Trace& wanted, double tolerance) {
  ASSERT_EQ(found.losses.size(), static_cast<size_t>(kSteps));
  ASSERT_EQ(wanted.losses.size(), static_cast<size_t>(kSteps));
  for (size_t i = 0; i < found.losses.size(); ++i) {
    EXPECT_NEAR(found.losses[i], wanted.losses[i], tolerance * wanted.losses[i]) << "step " << i;
  }
}

TEST(RealProcesses, OnTheCpuTrainAsOneDoes) {
  const Trace one = run(1, {}, /*on_gpu=*/false), two = run(2, {}, false);
  expect_close(two, one, 1e-5);
  EXPECT_EQ(two.tensors.size(), one.tensors.size());
}

class GpuProcesses : public ::testing::Test {
 protected:
  void SetUp() override {
    gpus_ = ops::gpu_count();
    if (gpus_ < 2) GTEST_SKIP() << "needs 2 GPUs, found " << gpus_;
  }
  static Trace on_gpus(int64_t size, const json& task = json::object()) {
    return run(size, task, /*on_gpu=*/true);
  }
  int64_t gpus_ = 0;
};

TEST_F(GpuProcesses, GraphHasTheBitsOfThePlainStream) {
  const std::vector<json> tasks = {
      {{"shard", true}},         {{"shard", false}}, {{"bf16", true}},      {{"tied", true}},
      {{"checkpointing", true}}, {{"frozen", 2}},    {{"micro_batches", 2}}};
  for (json task : tasks) {
    SCOPED_TRACE(task.dump());
    const Trace graph = on_gpus(2, task);
    expect_same_bits(on_gpus(2, task), graph);  // and from run to run
    task["graph"] = false;
    expect_same_bits(on_gpus(2, task), graph);
  }
}

/// The sum of two numbers does not depend on their order; without clipping that of the squares
/// plays no role.
TEST_F(GpuProcesses, ShardingChangesNoWeight) {
  const Trace sharded = on_gpus(2, {{"clip", 0.0}});
  const Trace whole = on_gpus(2, {{"clip", 0.0}, {"shard", false}});
  EXPECT_EQ(sharded.losses, whole.losses);
  EXPECT_TRUE(sharded.tensors == whole.tensors);
}

TEST_F(GpuProcesses, TrainAsOneDoesWithinRounding) {
  const std::vector<json> tasks = {{{"shard", true}}, {{"tied", true}}, {{"frozen", 2}}};
  for (const json& task : tasks) {
    SCOPED_TRACE(task.dump());
    const Trace one = on_gpus(1, task);
    EXPECT_LT(one.losses.back(), one.losses.front()) << "the task is to be learnt";
    // The products of a micro-batch are the same; their sums are rounded to fp32 in another order.
    expect_close(on_gpus(2, task), one, 1.0 / 256);
    if (gpus_ >= 4) expect_close(on_gpus(4, task), one, 1.0 / 256);
  }
}

TEST_F(GpuProcesses, MuonFp8AndBf16StateTrainAsOneDoes) {
  // FP8 has three bits of fraction: a number that is rounded the other way, since the weights
  // differ in their last bits, moves the loss of later steps by percents.
  const std::map<std::string, double> tolerances = {
      {"muon", 1.0 / 256}, {"bf16_state", 1.0 / 256}, {"fp8", 1.0 / 16}};
  for (const auto& [kind, tolerance] : tolerances) {
    SCOPED_TRACE(kind);
    json task = {{kind, true}};
    const Trace one = on_gpus(1, task), two = on_gpus(2, task);
    EXPECT_LT(one.losses.back(), one.losses.front()) << "the task is to be learnt";
    expect_close(two, one, tolerance);
    task["graph"] = false;
    expect_same_bits(on_gpus(2, task), two);
  }
}

TEST_F(GpuProcesses, RoundedGradientsTrainAlike) {
  const Trace exact = on_gpus(2), rounded = on_gpus(2, {{"bf16", true}});
  expect_close(rounded, exact, 1.0 / 64);
  EXPECT_FALSE(rounded.tensors == exact.tensors) << "nothing was rounded";
}

}  // namespace
}  // namespace stablemask
