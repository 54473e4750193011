#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "tests/train/tiny_run.h"

/// Files of a run that others remove, replace or overwrite while it trains.
namespace stablemask::testing {
namespace {

namespace fs = std::filesystem;

class RunFolderTest : public TinyRunTest {
 protected:
  /// Reads its own copies of the shards and saves every two steps.
  Config config_with_copies(const std::string& out) {
    Config changed = config(out);
    changed.train.save_every = 2;
    changed.data.train = {folder_ / (out + "-train.shard")};
    changed.data.valid = folder_ / (out + "-valid.shard");
    changed.data.prefetch = 0;
    fs::copy_file(corpus_->train, changed.data.train[0].path);
    fs::copy_file(corpus_->valid, changed.data.valid);
    return changed;
  }

  /// Does `harm` after step 3, whose next save is that of step 4.
  static RunOptions with_harm(const std::function<void()>& harm) {
    RunOptions options = quiet_options();
    options.on_step = [harm](const StepMetrics& metrics) {
      if (metrics.step == 3) harm();
      return true;
    };
    return options;
  }

  static std::vector<int64_t> saved(const std::string& run) {
    std::vector<int64_t> steps;
    for (const auto& summary : list_checkpoints(run + "/checkpoints")) {
      steps.push_back(summary.step);
    }
    return steps;
  }
};

/// Exchanges two tokens that differ: every token is still in the vocabulary.
void overwrite(const std::string& shard) {
  std::string bytes = read_file(shard);
  constexpr size_t kHeader = 256;
  size_t other = kHeader + 2;
  while (bytes.compare(other, 2, bytes, kHeader, 2) == 0) other += 2;
  std::swap_ranges(bytes.begin() + kHeader, bytes.begin() + kHeader + 2, bytes.begin() + other);
  write_file(shard, bytes);
}

TEST_F(RunFolderTest, ALostLockOrFolderEndsTheRunBeforeItWrites) {
  const std::vector<std::pair<std::string, std::function<void(const std::string&)>>> harms = {
      {"removed", [](const std::string& run) { fs::remove_all(run); }},
      {"renamed", [](const std::string& run) { fs::rename(run, run + "-moved"); }},
      {"unlocked", [](const std::string& run) { fs::remove(run + "/.lock"); }},
      {"relocked",
       [](const std::string& run) {
         fs::rename(run + "/.lock", run + "/old-lock");
         write_file(run + "/.lock", "");
       }},
      {"replaced", [](const std::string& run) {
         fs::rename(run, run + "-moved");
         fs::create_directories(run);
         write_file(run + "/.lock", "");
       }}};
  for (const auto& [name, harm] : harms) {
    SCOPED_TRACE(name);
    Config run = config(name);
    run.train.save_every = 2;
    run.train.stop_on_save_error = false;
    const std::string out = run.train.out;
    std::vector<int64_t> before;
    try {
      train(run, with_harm([&, &harm = harm] {
              harm(out);
              before = saved(out);
            }));
      ADD_FAILURE() << "no error";
    } catch (const CheckpointError& error) {
      EXPECT_EQ(std::string(error.what()).find(out + "/.lock: was removed or replaced"), 0u)
          << error.what();
    }
    EXPECT_EQ(saved(out), before);
    EXPECT_EQ(fs::exists(out), name != "removed" && name != "renamed");
  }
}

TEST_F(RunFolderTest, AnExceptionBringsNoLostFolderBack) {
  const Config run = config("run");
  const auto harm = [&] {
    fs::remove_all(run.train.out);
    throw std::runtime_error("of a callback");
  };
  EXPECT_THROW(train(run, with_harm(harm)), std::runtime_error);
  EXPECT_FALSE(fs::exists(run.train.out));
}

TEST_F(RunFolderTest, AFolderThatIsLostInTheFirstStepIsNotWrittenTo) {
  const Config run = config("run");
  RunOptions options = quiet_options();
  // Files are created after the first step, before its callback: nothing but the lock is there.
  Trainer trainer(run, options);
  fs::remove_all(run.train.out);
  EXPECT_THROW(trainer.run(), CheckpointError);
  EXPECT_FALSE(fs::exists(run.train.out));
}

TEST_F(RunFolderTest, AnOverwrittenTrainingShardIsNoticedBeforeTheNextSave) {
  const Config reference = config_with_copies("reference");
  train(reference);
  const Config run = config_with_copies("run");
  const std::string shard = run.data.train[0].path;
  try {
    train(run, with_harm([&] { overwrite(shard); }));
    ADD_FAILURE() << "no error";
  } catch (const DataError& error) {
    EXPECT_EQ(std::string(error.what()).find("shard " + shard + ": was overwritten"), 0u)
        << error.what();
  }
  EXPECT_EQ(saved(run.train.out), std::vector<int64_t>{2}) << "step 4 may have read other tokens";
  fs::copy_file(corpus_->train, shard, fs::copy_options::overwrite_existing);
  EXPECT_TRUE(train(run).finished);
  EXPECT_EQ(losses_of(run.train.out), losses_of(reference.train.out));
  EXPECT_EQ(tensors_of(run.train.out), tensors_of(reference.train.out));
}

TEST_F(RunFolderTest, AnOverwrittenValidationShardEndsTheRunAfterItsSave) {
  const Config run = config_with_copies("run");
  EXPECT_THROW(train(run, with_harm([&] { overwrite(run.data.valid); })), DataError);
  EXPECT_EQ(saved(run.train.out), (std::vector<int64_t>{2, 4}));
}

TEST_F(RunFolderTest, ShardsThatOnlyLookChangedAreNoReasonToStop) {
  const Config run = config_with_copies("run");
  const std::string shard = run.data.train[0].path, valid = run.data.valid;
  ::testing::internal::CaptureStderr();
  const auto harm = [&] {
    ::utimensat(AT_FDCWD, shard.c_str(), nullptr, 0);  // other times, the same bytes
    fs::copy_file(valid, valid + "-again");            // another file, the same tokens
    fs::rename(valid + "-again", valid);
  };
  EXPECT_TRUE(train(run, with_harm(harm)).finished);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST_F(RunFolderTest, AReplacedShardIsAWarningOnce) {
  const Config run = config_with_copies("run");
  const std::string shard = run.data.train[0].path;
  ::testing::internal::CaptureStderr();
  const auto harm = [&] {
    fs::copy_file(corpus_->valid, shard + "-other");
    fs::rename(shard + "-other", shard);
  };
  EXPECT_TRUE(train(run, with_harm(harm)).finished);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "stablemask: warning: shard " + shard +
                ": was replaced or removed; the run goes on with the tokens that it has open, but "
                "a resume needs the same ones there\n");
}

}  // namespace
}  // namespace stablemask::testing
