#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

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

/// A checkpoint of `step` under `root` whose tensor "norm" has a NaN.
std::string save_not_finite(const std::string& root, int64_t step) {
  TinyCheckpoint tiny(step);
  const std::vector<float> norm = {1, std::nanf(""), 3, 4};
  tiny.content().model["norm"].data = norm.data();
  return save_checkpoint(root, tiny.content(), {.keep_last = 10});
}

TEST_F(CheckpointCommand, VerifyOfWeightsThatAreNotFiniteEndsWithFive) {
  const std::string bad = save_not_finite(scratch_ / "run/checkpoints", 30);
  Result result = run("checkpoint verify " + (scratch_ / "run"));
  EXPECT_EQ(result.code, ExitCode::kNonFinite);
  EXPECT_TRUE(contains(result.output, folder_ + ": sound\n")) << result.output;
  EXPECT_TRUE(
      contains(result.output, bad + "/model.safetensors: norm holds values that are not finite\n"))
      << result.output;
  EXPECT_FALSE(contains(result.output, bad + ": sound")) << result.output;
  EXPECT_TRUE(contains(result.error, "the weights of 1 of 3 checkpoints are not finite"))
      << result.error;
  // Damage is worse.
  write_bytes(folder_ + "/state.json", "{}");
  EXPECT_EQ(run("checkpoint verify " + (scratch_ / "run")).code, ExitCode::kCheckpoint);
}

TEST_F(CheckpointCommand, StripLeavesOutTheOptimizerAlone) {
  const std::string to = scratch_ / "shared";
  const Result result = run("checkpoint strip " + (scratch_ / "run") + " " + to + "/");
  EXPECT_EQ(result.code, ExitCode::kOk) << result.error;
  EXPECT_EQ(result.output, to + "/: " + folder_ + " without the optimizer's state\n");
  const Checkpoint stripped = load_checkpoint(to), whole = load_checkpoint(folder_);
  EXPECT_FALSE(stripped.optimizer);
  EXPECT_FALSE(std::filesystem::exists(to + "/optimizer.safetensors"));
  EXPECT_EQ(stripped.step, 20);
  EXPECT_TRUE(same_tensors(stripped.model.tensors(), whole.model.tensors()));
  EXPECT_EQ(stripped.state_json, whole.state_json);
  EXPECT_EQ(stripped.config_json, whole.config_json);
  EXPECT_EQ(stripped.tokenizer_model, whole.tokenizer_model);
  EXPECT_EQ(run("checkpoint verify " + to).output, to + ": sound\n");
  // What is stripped can be stripped.
  EXPECT_EQ(run("checkpoint strip " + to + " " + (scratch_ / "step-00000020")).code, ExitCode::kOk);
}

TEST_F(CheckpointCommand, StrippedAveragesStayAveragesWithoutTheTrainedWeights) {
  TinyCheckpoint tiny(30);
  const TinyCheckpoint other(7);
  tiny.content().averaged = true;
  tiny.content().trained = other.content().model;
  const std::string from = save_checkpoint(scratch_ / "run/checkpoints", tiny.content(), {});
  EXPECT_EQ(run("checkpoint verify " + from).output, from + ": sound\n");
  const Checkpoint all = load_checkpoint(from);
  EXPECT_TRUE(all.averaged);
  EXPECT_TRUE(same_tensors(all.model.tensors(), tiny.content().model));
  EXPECT_TRUE(same_tensors(all.trained->tensors(), other.content().model));
  const Checkpoint averages = load_checkpoint(from, parts_with(WeightKind::kAveraged));
  EXPECT_TRUE(averages.averaged && !averages.trained && !averages.optimizer);
  EXPECT_TRUE(same_tensors(averages.model.tensors(), tiny.content().model));
  const Checkpoint trained = load_checkpoint(from, parts_with(WeightKind::kTrained));
  EXPECT_TRUE(!trained.averaged && !trained.trained && !trained.optimizer);
  EXPECT_TRUE(same_tensors(trained.model.tensors(), other.content().model));
  EXPECT_EQ(trained.model_path, from + "/trained.safetensors");
  EXPECT_EQ(trained.model_sha256, averages.model_sha256) << "what adapters name their base by";

  const std::string to = scratch_ / "stripped";
  EXPECT_EQ(run("checkpoint strip " + from + " " + to).code, ExitCode::kOk);
  EXPECT_FALSE(std::filesystem::exists(to + "/trained.safetensors"));
  EXPECT_EQ(run("checkpoint verify " + to).output, to + ": sound\n");
  EXPECT_TRUE(same_tensors(load_checkpoint(to).model.tensors(), tiny.content().model));
  EXPECT_TRUE(load_checkpoint(to).averaged);
  try {
    load_checkpoint(to, parts_with(WeightKind::kTrained));
    ADD_FAILURE() << "averages for trained weights";
  } catch (const CheckpointError& error) {
    EXPECT_TRUE(contains(error.what(), to + ": holds averaged weights alone")) << error.what();
  }
  // Without averages the weights are the trained ones.
  EXPECT_TRUE(
      same_tensors(load_checkpoint(folder_, parts_with(WeightKind::kTrained)).model.tensors(),
                   load_checkpoint(folder_).model.tensors()));
}

TEST_F(CheckpointCommand, VerifyLooksAtTheTrainedWeightsToo) {
  TinyCheckpoint tiny(30), other(7);
  const std::vector<float> norm = {1, std::nanf(""), 3, 4};
  other.content().model["norm"].data = norm.data();
  tiny.content().averaged = true;
  tiny.content().trained = other.content().model;
  const std::string bad = save_checkpoint(scratch_ / "run/checkpoints", tiny.content(), {});
  const Result result = run("checkpoint verify " + bad);
  EXPECT_EQ(result.code, ExitCode::kNonFinite);
  EXPECT_TRUE(contains(result.output, bad + "/trained.safetensors: norm holds values"))
      << result.output;
}

TEST_F(CheckpointCommand, StripReplacesNothingAndCopiesNoDamage) {
  const auto refusal = [&](const std::string& to) {
    const Result result = run("checkpoint strip " + folder_ + " " + to);
    EXPECT_EQ(result.code, ExitCode::kCheckpoint) << to;
    return result.error;
  };
  std::filesystem::create_directory(scratch_ / "empty");
  write_bytes(scratch_ / "file", "mine");
  std::filesystem::create_symlink("nowhere", scratch_ / "link");
  for (const char* name : {"empty", "file", "link", "run/checkpoints/step-00000010"}) {
    EXPECT_EQ(refusal(scratch_ / name), scratch_ / name + ": exists already; name a new folder");
  }
  EXPECT_EQ(read_bytes(scratch_ / "file"), "mine");
  EXPECT_EQ(refusal(folder_), folder_ + ": exists already; name a new folder");
  EXPECT_TRUE(contains(refusal(scratch_ / "step-00000021"), "the checkpoint is of step 20"));
  EXPECT_TRUE(contains(refusal(scratch_ / "none/shared"), "none/shared.tmp-"));
  const std::string bad = save_not_finite(scratch_ / "bad", 5);
  EXPECT_EQ(run("checkpoint strip " + bad + " " + (scratch_ / "new")).code, ExitCode::kNonFinite);
  write_bytes(folder_ + "/config.json", "{ }\n");
  EXPECT_TRUE(contains(refusal(scratch_ / "new"), "config.json: is damaged"));
  EXPECT_FALSE(std::filesystem::exists(scratch_ / "new"));
}

}  // namespace
}  // namespace stablemask
