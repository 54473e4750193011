#include "src/train/disk_need.h"

#include <filesystem>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "tests/train/tiny_run.h"

namespace stablemask::testing {
namespace {

class DiskNeedTest : public TinyRunTest {
 protected:
  DiskNeedTest() : config_(config("run")), tokenizer_(Tokenizer::load(corpus_->tokenizer)) {
    config_.model.vocab_size = tokenizer_.vocab_size();
    config_.train.save_minutes = 0;
    config_.train.steps = 100;
  }
  DiskNeed need(int64_t step = 0) const { return DiskNeed(config_, tokenizer_, step); }
  /// Bytes of all files below a folder.
  static double size_of(const std::string& folder) {
    double total = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      if (entry.is_regular_file()) total += static_cast<double>(entry.file_size());
    }
    return total;
  }

  Config config_;
  Tokenizer tokenizer_;
};

TEST_F(DiskNeedTest, CountsTheCheckpointsOfOneTime) {
  EXPECT_EQ(need().checkpoints(), 1) << "at the end";
  config_.train.save_every = 10;
  EXPECT_EQ(need().checkpoints(), 3) << "keep_last 2 and the one that is written";
  EXPECT_EQ(need(85).checkpoints(), 2) << "steps 90 and 100";
  EXPECT_EQ(need(100).checkpoints(), 0);
  config_.train.keep_every = 25;
  EXPECT_EQ(need().checkpoints(), 5) << "50 and 100 stay";
  config_.train.keep_every = 1;
  EXPECT_EQ(need().checkpoints(), 10) << "no more than saves";
  config_.train.keep_every = 0;
  config_.train.keep_last = 1'000'000;
  EXPECT_EQ(need().checkpoints(), 10);

  config_.train.keep_last = 4;
  config_.train.save_every = 0;
  config_.train.save_minutes = 15;
  EXPECT_EQ(need().checkpoints(), 5) << "by time, perhaps";
  config_.train.time_limit_s = 1800;
  EXPECT_EQ(need().checkpoints(), 3) << "two by time and the last one";
}

TEST_F(DiskNeedTest, CountsTheBestCheckpoint) {
  config_.train.keep_best = true;
  config_.train.eval_every = 10;
  EXPECT_EQ(need().checkpoints(), 4) << "keep_last 2, the one that is written, the best";
  EXPECT_EQ(need(85).checkpoints(), 2) << "steps 90 and 100";
  config_.train.keep_every = 25;
  EXPECT_EQ(need().checkpoints(), 6) << "50 and 100 stay, should they be the best of their time";
  config_.train.save_every = 10;
  EXPECT_EQ(need().checkpoints(), 6) << "the same steps";
  config_.train.save_every = 35;
  config_.train.keep_every = 5;
  EXPECT_EQ(need().checkpoints(), 11) << "10, 20, …, 100 and 35; 70 is one of both";
  config_.train.save_every = 0;
  config_.train.eval_every = 0;
  EXPECT_EQ(need().checkpoints(), 1) << "validated and saved at the end";
}

TEST_F(DiskNeedTest, OfARunWithABestCheckpointIsNotExceeded) {
  config_.train.steps = 24;
  config_.train.eval_every = 2;
  config_.train.keep_best = true;
  config_.train.keep_last = 1;
  config_.train.keep_every = 8;
  config_.optimizer.lr = 10;  // the best one is not the last
  config_.schedule.warmup_steps = 24;
  const DiskNeed before = need();
  RunOptions options = quiet_options();
  double most = 0;
  options.on_step = [&](const StepMetrics&) {
    if (std::filesystem::exists(config_.train.out)) {
      most = std::max(most, size_of(config_.train.out));
    }
    return true;
  };
  const RunResult result = train(config_, options);
  EXPECT_LT(result.best_step, 24);
  const double written = std::max(most, size_of(config_.train.out));
  EXPECT_GE(before.bytes() - before.checkpoint_bytes(), written);
}

TEST_F(DiskNeedTest, IsAtLeastWhatARunWritesAndNotMuchMore) {
  config_.train.steps = 12;
  config_.train.save_every = 2;
  config_.train.keep_last = 5;
  config_.train.tensorboard = true;
  const DiskNeed before = need();
  train(config_);
  const double written = size_of(config_.train.out);
  EXPECT_EQ(before.checkpoints(), 6);
  const double others = before.bytes() - before.checkpoint_bytes();  // without the temporary one
  EXPECT_GE(others, written);
  EXPECT_LE(others, written + (2 << 20));
  const double one = size_of(resolve_checkpoint(config_.train.out));
  EXPECT_NEAR(before.checkpoint_bytes(), one, 0.2 * one + 8192) << "headers and JSON are not in it";

  // A run that goes on replaces five checkpoints one by one: room for the temporary one is enough.
  config_.train.steps = 50;
  EXPECT_LT(need(12).bytes(), 1.5 * one + 2 * (1 << 20));
  // One that keeps more needs more.
  config_.train.keep_last = 9;
  EXPECT_GT(need(12).bytes(), 4.5 * before.checkpoint_bytes());
}

TEST_F(DiskNeedTest, Bf16StateTakesFourBytesAParameterLess) {
  config_.train.steps = 1;
  config_.optimizer.state = StateDtype::kBf16;
  const double bf16 = need().checkpoint_bytes();
  train(config_);
  const double written = size_of(resolve_checkpoint(config_.train.out));
  EXPECT_NEAR(bf16, written, 0.2 * written + 8192) << "headers and JSON are not in it";
  const Checkpoint checkpoint = load_checkpoint(resolve_checkpoint(config_.train.out));
  int64_t parameters = 0;
  for (const auto& [name, view] : checkpoint.model.tensors()) {
    parameters += static_cast<int64_t>(view.bytes()) / 4;
  }
  config_.optimizer.state = StateDtype::kFp32;
  EXPECT_EQ(need().checkpoint_bytes() - bf16, 4.0 * static_cast<double>(parameters));
}

TEST_F(DiskNeedTest, LeftoversOfKilledProcessesAreRoom) {
  config_.train.save_every = 10;
  const double before = need().bytes();
  const std::string left = config_.train.out + "/checkpoints/step-00000010.tmp-0123456789abcdef";
  std::filesystem::create_directories(left);
  write_file(left + "/model.safetensors", std::string(20'000, 'x'));
  EXPECT_EQ(need().bytes(), before - 20'000);
}

TEST_F(DiskNeedTest, ARunWithoutRoomIsRefusedBeforeItsFirstStep) {
  config_.train.steps = 10'000'000;
  config_.train.save_every = 1;
  config_.train.keep_last = 1'000'000'000;
  RunOptions options = quiet_options();
  int steps = 0;
  options.on_step = [&](const StepMetrics&) { return ++steps < 2; };
  const std::string report = dry_run_report(config_);
  EXPECT_NE(report.find("10000000 more checkpoints and logs; "), std::string::npos) << report;
  EXPECT_NE(report.find(" free: NOT ENOUGH"), std::string::npos) << report;
  try {
    train(config_, options);
    ADD_FAILURE() << "no error";
  } catch (const CheckpointError& error) {
    const std::string message = error.what();
    for (const std::string& part :
         {config_.train.out + ": not enough space for this run: ", std::string(" MB free"),
          std::string("10000000 more checkpoints of 0."), std::string("train.keep_last")}) {
      EXPECT_NE(message.find(part), std::string::npos) << message;
    }
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  EXPECT_EQ(steps, 0);
  EXPECT_FALSE(std::filesystem::exists(config_.train.out));

  // A run that goes on when a save fails is only warned.
  config_.train.stop_on_save_error = false;
  ::testing::internal::CaptureStderr();
  train(config_, options);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("warning: " + config_.train.out +
                                                          ": not enough space for this run"),
            std::string::npos);
  EXPECT_EQ(steps, 2);
}

TEST_F(DiskNeedTest, TheDryRunSaysTheNeedAndTheRoom) {
  const std::string report = dry_run_report(config_);
  EXPECT_NE(report.find("disk, at most "), std::string::npos) << report;
  EXPECT_NE(report.find("1 more checkpoint and logs; "), std::string::npos) << report;
  EXPECT_NE(report.find("B free\n"), std::string::npos) << report;
}

}  // namespace
}  // namespace stablemask::testing
