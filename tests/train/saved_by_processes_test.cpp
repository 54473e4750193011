// What several processes save, which are threads here.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "src/train/saver.h"
#include "src/train/snapshot.h"
#include "stablemask/base/error.h"
#include "tests/data/tiny_corpus.h"
#include "tests/dist/threads.h"
#include "tests/train/processes.h"
#include "tests/train/steps.h"

namespace stablemask {
namespace {

using namespace testing_processes;
using namespace testing_steps;
using testing::run_processes;

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class SavedByProcesses : public ::testing::Test {
 protected:
  /// Trains `steps` steps from the checkpoint `from` ("": from the start) and saves in a folder
  /// `name`; returns the checkpoint's folder.
  std::string save(const Config& config, at::ScalarType compute, int64_t processes,
                   const std::string& name, const std::string& from, int64_t steps) const {
    std::string saved;
    run_processes(processes, [&](const GroupPtr& group) {
      TinyTraining run(config, at::kCPU, compute, group);
      if (!from.empty()) {
        const Checkpoint checkpoint = load_checkpoint(from);
        run.flat->weights().zero_();
        if (run.flat->remainder().defined()) run.flat->remainder().fill_(1);
        restore_weights(*run.flat, checkpoint);
        restore_optimizer(*run.flat, *run.optimizer, run.model->fp8.get(), checkpoint);
        if (run.average) restore_average(*run.flat, *run.average, checkpoint);
      }
      for (int64_t step = 1; step <= steps; ++step) run.step(batches_of(*group, step), 2e-3);
      Saver::Options options;
      options.root = folder_ / name;
      Saver saver(std::move(options), run.flat, run.optimizer, run.model->fp8, group, run.average);
      RunState state;
      state.step = 1;
      EXPECT_TRUE(saver.save(state, /*must_succeed=*/true));
      if (group->rank() == 0) saved = saver.folder();
    });
    return saved;
  }

  static void expect_equal(const std::string& found, const std::string& wanted) {
    for (const char* file :
         {"/model.safetensors", "/optimizer.safetensors", "/trained.safetensors"}) {
      EXPECT_GT(bytes_of(wanted + file).size(), 10000u);
      EXPECT_TRUE(bytes_of(found + file) == bytes_of(wanted + file)) << found << file;
    }
  }

  const testing::TemporaryFolder folder_;
};

TEST_F(SavedByProcesses, CheckpointsAreTheSameWhateverTheirNumber) {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    for (const int64_t frozen : {0, 1}) {
      Config config = base_config();
      config.train.freeze_layers = frozen;
      config.train.ema_decay = 0.9;
      const std::string run = std::string(toString(compute)) + std::to_string(frozen);
      const std::string one = save(config, compute, 1, run + "-1", "", 2);
      for (const int64_t count : {1, 2, 3}) {
        const std::string name = run + "-again-" + std::to_string(count);
        expect_equal(save(config, compute, count, name, one, 0), one);
      }
      const std::string three = save(config, compute, 3, run + "-3", one, 2);
      expect_equal(save(config, compute, 2, run + "-2", three, 0), three);
      config.train.shard = ShardKind::kNone;
      expect_equal(save(config, compute, 2, run + "-none", three, 0), three);
    }
  }
}

TEST_F(SavedByProcesses, Bf16StateIsTheSameWhateverTheirNumber) {
  Config config = base_config();
  config.optimizer.state = StateDtype::kBf16;
  config.train.ema_decay = 0.9;
  const std::string one = save(config, at::kBFloat16, 1, "state-1", "", 2);
  for (const int64_t count : {2, 3}) {
    expect_equal(save(config, at::kBFloat16, count, "state-" + std::to_string(count), one, 0), one);
  }
}

TEST_F(SavedByProcesses, StateIsConvertedToTheFormatOfTheRunThatReadsIt) {
  Config fp32 = base_config(), bf16 = base_config();
  fp32.train.ema_decay = bf16.train.ema_decay = 0.9;
  bf16.optimizer.state = StateDtype::kBf16;
  const std::string exact = save(fp32, at::kFloat, 1, "exact", "", 2);
  const std::string rounded = save(bf16, at::kFloat, 2, "rounded", exact, 0);
  const std::string back = save(fp32, at::kFloat, 3, "back", rounded, 0);
  expect_equal(save(bf16, at::kFloat, 1, "rounded-again", back, 0), rounded);
  const Checkpoint from = load_checkpoint(exact), to = load_checkpoint(rounded);
  for (const auto& [name, view] : from.optimizer->tensors()) {
    at::Tensor wide = at::empty(view.shape, at::kFloat);
    std::memcpy(wide.mutable_data_ptr(), view.data, view.bytes());
    at::Tensor narrow = at::empty(view.shape, at::kBFloat16);
    const TensorView& stored = to.optimizer->tensors().at(name);
    ASSERT_EQ(stored.type, ElementType::kBf16);
    std::memcpy(narrow.mutable_data_ptr(), stored.data, stored.bytes());
    EXPECT_TRUE(narrow.equal(wide.to(at::kBFloat16))) << name;
  }
}

TEST_F(SavedByProcesses, MuonsCheckpointsAreTheSameWhateverTheirNumber) {
  for (const int64_t frozen : {0, 1}) {
    Config config = base_config();
    config.optimizer.kind = OptimizerKind::kMuon;
    config.train.freeze_layers = frozen;
    config.train.ema_decay = 0.9;
    const std::string run = "muon" + std::to_string(frozen);
    const std::string three = save(config, at::kBFloat16, 3, run + "-3", "", 2);
    for (const int64_t count : {1, 2}) {
      const std::string name = run + "-" + std::to_string(count);
      expect_equal(save(config, at::kBFloat16, count, name, three, 0), three);
    }
    config.train.shard = ShardKind::kNone;
    expect_equal(save(config, at::kBFloat16, 2, run + "-none", three, 0), three);
  }
}

TEST_F(SavedByProcesses, FailureToSaveEndsAllOrIsAWarningAfterAllHaveSent) {
  run_processes(2, [&](const GroupPtr& group) {
    TinyTraining run(base_config(), at::kCPU, at::kFloat, group);
    run.step(batches_of(*group, 1));
    Saver::Options options;
    options.root = folder_ / "a-file";
    if (group->rank() == 0) std::ofstream(options.root) << "no folder";
    Saver saver(std::move(options), run.flat, run.optimizer, run.model->fp8, group);
    RunState state;
    state.step = 1;
    const auto saves = [&] { saver.save(state, /*must_succeed=*/true); };
    if (group->rank() == 0) {
      EXPECT_THROW(saves(), CheckpointError);
    } else {
      EXPECT_THROW(saves(), PeerLostError) << "its own part was sent";
    }
    EXPECT_FALSE(saver.save(state, /*must_succeed=*/false));
    EXPECT_TRUE(run.step(batches_of(*group, 2)).updated) << "the processes still match";
  });
}

TEST_F(SavedByProcesses, WeightsThatAreNotFiniteAreTheSameErrorInEveryProcess) {
  run_processes(3, [&](const GroupPtr& group) {
    TinyTraining run(base_config(), at::kCPU, at::kFloat, group);
    Saver::Options options;
    options.root = folder_ / "not-finite";
    Saver saver(std::move(options), run.flat, run.optimizer, run.model->fp8, group);
    RunState state;
    state.step = 1;
    run.flat->weights().fill_(NAN);
    try {
      saver.save(state, /*must_succeed=*/false);
      ADD_FAILURE() << "process " << group->rank() << " saved";
    } catch (const NonFiniteError& error) {
      EXPECT_NE(std::string(error.what()).find("step 1: blocks.0.attention."), std::string::npos)
          << error.what();
    }
    EXPECT_FALSE(saver.save(state, /*must_succeed=*/true)) << "a second attempt says nothing";
    EXPECT_FALSE(std::filesystem::exists(folder_ / "not-finite"));
  });
}

}  // namespace
}  // namespace stablemask
