#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "src/commands/commands.h"
#include "stablemask/base/error.h"
#include "stablemask/io/checkpoint.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"

namespace stablemask {
namespace {

struct Result {
  ExitCode code = ExitCode::kOk;
  std::string output;
  std::string error;
};

/// Runs `stablemask ARGUMENTS` as main does, in this process.
Result run(const std::string& arguments) {
  CLI::App program("stablemask");
  commands::add_checkpoint(program);
  Result result;
  testing::internal::CaptureStdout();
  try {
    program.parse(arguments);
  } catch (const Error& error) {
    result.code = error.code();
    result.error = error.what();
  }
  std::fflush(stdout);
  result.output = testing::internal::GetCapturedStdout();
  return result;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class CheckpointCommand : public testing::Test {
 protected:
  CheckpointCommand() {
    for (const int64_t step : {10, 20}) {
      folder_ = save_checkpoint(scratch_ / "run/checkpoints", TinyCheckpoint(step).content(), {});
    }
    std::filesystem::create_directory(scratch_ / "run/checkpoints/step-00000030.tmp-1-deadbeef");
  }

  Scratch scratch_;
  std::string folder_;  // of step 20
};

TEST_F(CheckpointCommand, ListShowsWhatIsThere) {
  const Result result = run("checkpoint ls " + (scratch_ / "run"));
  EXPECT_EQ(result.code, ExitCode::kOk);
  EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 4);
  EXPECT_TRUE(contains(result.output, "complete    " + folder_)) << result.output;
  EXPECT_TRUE(contains(result.output, "incomplete")) << result.output;
  EXPECT_EQ(run("checkpoint ls " + scratch_.path()).error,
            scratch_.path() + ": holds runs, name one: run");
  EXPECT_EQ(run("checkpoint ls " + (scratch_ / "none")).code, ExitCode::kCheckpoint);
  EXPECT_EQ(run("checkpoint ls " + folder_).error, folder_ + ": is one checkpoint; name its run");
}

TEST_F(CheckpointCommand, VerifyOfWhatIsSound) {
  const Result one = run("checkpoint verify " + folder_);
  EXPECT_EQ(one.code, ExitCode::kOk);
  EXPECT_EQ(one.output, folder_ + ": sound\n");
  const Result all = run("checkpoint verify " + (scratch_ / "run"));
  EXPECT_EQ(all.code, ExitCode::kOk);
  EXPECT_TRUE(contains(all.output, "step-00000010: sound\n")) << all.output;
  EXPECT_TRUE(contains(all.output, "step-00000020: sound\n")) << all.output;
}

TEST_F(CheckpointCommand, VerifyOfADamagedOneEndsWithFour) {
  write_bytes(folder_ + "/state.json", "{}");
  const Result result = run("checkpoint verify " + (scratch_ / "run"));
  EXPECT_EQ(result.code, ExitCode::kCheckpoint);
  EXPECT_TRUE(contains(result.output, "step-00000020/state.json: is damaged")) << result.output;
  EXPECT_TRUE(contains(result.error, "1 of 2 checkpoints damaged")) << result.error;
  EXPECT_EQ(run("checkpoint verify " + (scratch_ / "missing")).code, ExitCode::kCheckpoint);
}

}  // namespace
}  // namespace stablemask
