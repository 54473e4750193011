#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/io/checkpoint.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"

/// Readers of checkpoints that a run removes meanwhile.
namespace stablemask {
namespace {

using Names = std::vector<std::string>;

std::string save(const std::string& root, int64_t step) {
  return save_checkpoint(root, TinyCheckpoint(step).content(), {100, 0});
}

TEST(CheckpointReaders, ARemovalAfterTheFilesAreOpenDisturbsNoReader) {
  const Scratch scratch;
  const std::string folder = save(scratch.path(), 7);
  bool removed = false;
  const Checkpoint loaded =
      load_checkpoint(folder, CheckpointParts::kAll, [&](uint64_t done, uint64_t total) {
        if (done < total || removed) return;
        std::filesystem::remove_all(folder);  // hashed, not read yet
        removed = true;
      });
  EXPECT_TRUE(removed);
  EXPECT_TRUE(is_tiny_checkpoint(loaded));
}

TEST(CheckpointReaders, AReaderTakesTheNewestWhenTheOneItChoseIsRemoved) {
  const Scratch scratch;
  for (const int64_t step : {1, 2, 3}) save(scratch.path(), step);
  std::vector<std::string> tried;
  const auto read = [&](const std::string& folder) {
    tried.push_back(std::filesystem::path(folder).filename());
    if (tried.size() < 3) std::filesystem::remove_all(folder);
    load_checkpoint(folder);
  };
  with_checkpoint(scratch.path(), read);
  EXPECT_EQ(tried, (Names{"step-00000003", "step-00000002", "step-00000001"}));

  // Damage and a checkpoint that was named are no reason to take another one.
  write_bytes(scratch / "step-00000001/state.json", "{}");
  EXPECT_NE(message_of<CheckpointError>([&] { with_checkpoint(scratch.path(), read); }), "");
  tried.clear();
  const std::string named = save(scratch.path(), 5);
  EXPECT_NE(message_of<CheckpointError>([&] { with_checkpoint(named, read); }), "");
  EXPECT_EQ(tried, Names{"step-00000005"});
}

TEST(CheckpointReaders, ReadersMeetNoErrorBesideARunThatKeepsOneCheckpoint) {
  const Scratch scratch;
  save(scratch.path(), 1);
  std::atomic<bool> ends = false;
  std::thread run([&] {
    for (int64_t step = 2; !ends; ++step) {
      save_checkpoint(scratch.path(), TinyCheckpoint(step).content(), {1, 0});
    }
  });
  int64_t before = 0;
  for (int i = 0; i < 300; ++i) {
    try {
      with_checkpoint(scratch.path(), [&](const std::string& folder) {
        const Checkpoint loaded = load_checkpoint(folder);
        EXPECT_TRUE(is_tiny_checkpoint(loaded));
        EXPECT_GE(loaded.step, before);
        before = loaded.step;
      });
    } catch (const CheckpointError& error) {
      ADD_FAILURE() << error.what();
      break;
    }
  }
  ends = true;
  run.join();
}

}  // namespace
}  // namespace stablemask
