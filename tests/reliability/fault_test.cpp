// Ends or disturbs the work of storage_work at each of its system calls and looks at what is left:
// the old content or the new one, whole, whatever happened; then the same command succeeds.
//
// STABLEMASK_FAULTS=all tries every call, and every twentieth of the program itself; otherwise
// every twentieth is tried, without the program.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "stablemask/data/prepare.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/io/checkpoint.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"
#include "tests/reliability/storage_state.h"
#include "tests/reliability/strace.h"
#include "tests/reliability/totals.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

constexpr int kKilled = 128 + 9;

auto* const totals = static_cast<Totals*>(testing::AddGlobalTestEnvironment(new Totals("faults")));

/// A command of storage_work, the folder that it finds, and what it must leave there.
class Work {
 public:
  virtual ~Work() = default;
  virtual void fill(const std::string& folder) const = 0;
  virtual std::string arguments(const std::string& folder) const = 0;
  virtual std::string refusals() const = 0;  ///< the digits of the exit codes of errors
  /// What is wrong in `folder` after the command ended as `outcome` says; "": nothing.
  virtual std::string loss(const std::string& folder, const Outcome& outcome) const = 0;
  /// The arguments of the next command, which removes what a killed one left.
  virtual std::string next_arguments(const std::string& folder) const { return arguments(folder); }
  /// What is wrong after the next command, which ended well.
  virtual std::string loss_at_end(const std::string& folder, const Outcome& first) const {
    return loss(folder, {0, first.errors});
  }
  virtual std::string program() const { return STORAGE_WORK; }
  std::string command(const std::string& folder) const {
    return program() + " " + arguments(folder) + " >/dev/null";
  }
  std::string next_command(const std::string& folder) const {
    return program() + " " + next_arguments(folder) + " >/dev/null";
  }
};

/// Whether the steps 1 … `last` are there once and in order. One may be missing that a warning
/// names.
bool has_steps(const std::vector<int64_t>& steps, int64_t last, const Outcome& outcome) {
  auto at = steps.begin();
  for (int64_t step = 1; step <= last; ++step) {
    const std::string warning = "step " + std::to_string(step) + " not recorded";
    if (at != steps.end() && *at == step) {
      ++at;
    } else if (outcome.errors.find(warning) == std::string::npos) {
      return false;
    }
  }
  return true;
}

/// Saves step 3 over steps 1 and 2, of which retention removes the first; or replaces it.
class Saving : public Work {
 public:
  explicit Saving(bool replaces) : replaces_(replaces) {}
  void fill(const std::string& folder) const override {
    for (int64_t step = 1; step <= (replaces_ ? 3 : 2); ++step) {
      save_checkpoint(folder + "/checkpoints", TinyCheckpoint(step).content(), {100, 0});
    }
  }
  std::string arguments(const std::string& folder) const override {
    return "save " + folder + " 3 2";
  }
  std::string refusals() const override { return "4"; }
  std::string loss(const std::string& folder, const Outcome& outcome) const override {
    int64_t newest = 0;
    const std::string root = folder + "/checkpoints";
    const std::string problem =
        checkpoint_problem(root, outcome.status == 0 ? 3 : 2, newest, is_tiny_checkpoint);
    const bool kept = fs::exists(root + "/step-00000001") && fs::exists(root + "/step-00000002");
    if (problem.empty() && outcome.status == 4 && !kept) return "an older checkpoint is gone";
    return problem;
  }
  std::string loss_at_end(const std::string& folder, const Outcome&) const override {
    const std::string root = folder + "/checkpoints";
    if (read_bytes(root + "/LATEST") != "step-00000003\n") return "LATEST is another";
    if (fs::exists(root + "/step-00000001")) return "step 1 is still there";
    return loss(folder, {0, ""});
  }

 private:
  bool replaces_;
};

/// Saves step 3 as the best one, whose place BEST gave to step 1; retention removes both others.
class SavingTheBest : public Work {
 public:
  void fill(const std::string& folder) const override {
    for (int64_t step = 1; step <= 2; ++step) {
      save_checkpoint(folder + "/checkpoints", TinyCheckpoint(step).content(), {100, 0, 1});
    }
  }
  std::string arguments(const std::string& folder) const override {
    return "best " + folder + " 3 1";
  }
  std::string refusals() const override { return "4"; }
  std::string loss(const std::string& folder, const Outcome& outcome) const override {
    int64_t newest = 0;
    const bool saved = outcome.status == 0;
    const std::string problem =
        checkpoint_problem(folder + "/checkpoints", saved ? 3 : 2, newest, is_tiny_checkpoint);
    if (!problem.empty()) return problem;
    const bool warned = outcome.errors.find("is saved, but ") != std::string::npos;
    return best_problem(folder, saved && !warned ? std::set<int64_t>{3} : std::set<int64_t>{1, 3});
  }
  std::string loss_at_end(const std::string& folder, const Outcome&) const override {
    for (const char* step : {"1", "2"}) {
      if (fs::exists(folder + "/checkpoints/step-0000000" + step)) return "it is still there";
    }
    return loss(folder, {0, ""});
  }
};

/// A run to step 8, from nothing or from the checkpoint of step 4. Then there are records of later
/// steps, the last of them torn, as a killed process leaves them.
class Training : public Work {
 public:
  explicit Training(bool resumes) : resumes_(resumes) {}
  void fill(const std::string& folder) const override {
    if (!resumes_) return;
    const std::string work = STORAGE_WORK " train " + folder;
    EXPECT_EQ(std::system((work + " 7 >/dev/null 2>&1").c_str()), 0);
    fs::remove_all(folder + "/checkpoints/step-00000006");
    for (const char* name : {"/metrics.jsonl", "/samples.jsonl"}) {
      const std::string lines = read_bytes(folder + name);
      write_bytes(folder + name, lines.substr(0, lines.size() - 5));
    }
  }
  std::string arguments(const std::string& folder) const override {
    return "train " + folder + " 8";
  }
  std::string next_arguments(const std::string& folder) const override {
    return "train " + folder + " 10";
  }
  std::string refusals() const override { return "4"; }
  std::string loss(const std::string& folder, const Outcome& outcome) const override {
    const bool says_so = outcome.errors.find("the checkpoint before it") != std::string::npos;
    const bool resumed_other = outcome.errors.find("starts after step ") != std::string::npos &&
                               outcome.errors.find("starts after step 4\n") == std::string::npos;
    if (resumes_ && resumed_other && !says_so) {
      return "the newest checkpoint is passed over in silence";
    }
    return loss_before(folder, outcome, outcome.status == 0 ? 8 : resumes_ ? 4 : 0);
  }
  std::string loss_at_end(const std::string& folder, const Outcome& first) const override {
    return loss_before(folder, {0, first.errors}, 10);
  }

 private:
  static std::string loss_before(const std::string& folder, const Outcome& outcome,
                                 int64_t at_least) {
    int64_t newest = 0;
    const std::string problem =
        checkpoint_problem(folder + "/checkpoints", at_least, newest, is_tiny_checkpoint);
    if (!problem.empty() || newest == 0) return problem;
    for (const char* name : {"metrics.jsonl", "samples.jsonl"}) {
      const auto steps = steps_of_lines(folder + "/" + name);
      if (!has_steps(steps, newest, outcome)) return std::string(name) + " lacks a step";
    }
    // An event file that replaces another one has a later name; both are there for a moment.
    const bool two = outcome.errors.find("TensorBoard shows it too") != std::string::npos;
    if (outcome.status != 0 || two) return "";
    const auto steps = steps_of_events(folder + "/tensorboard");
    return has_steps(steps, newest, outcome) ? "" : "an event is missing";
  }

  bool resumes_;
};

std::string some_text(const std::string& name, int lines) {
  std::string text = " = " + name + " =\n";
  for (int k = 0; k < lines; ++k) {
    text += "The river " + name + " has " + std::to_string(k * k) + " bridges and a lighthouse.\n";
  }
  return text;
}

/// Replaces a file: a shard or a tokenizer of another text.
class Making : public Work {
 public:
  explicit Making(std::string work) : work_(std::move(work)) {
    for (const std::string name : {"Old", "New"}) {
      const Scratch scratch;
      make_inputs(scratch.path(), name);
      EXPECT_EQ(std::system(command(scratch.path()).c_str()), 0);
      (name == "Old" ? before_ : after_) = read_bytes(scratch / "output");
    }
    EXPECT_NE(before_, after_);
  }
  void fill(const std::string& folder) const override {
    make_inputs(folder, "New");
    write_bytes(folder + "/output", before_);
  }
  std::string arguments(const std::string& folder) const override { return work_ + " " + folder; }
  std::string refusals() const override { return "3"; }
  std::string loss(const std::string& folder, const Outcome& outcome) const override {
    const std::string bytes = read_bytes(folder + "/output");
    if (bytes == after_ || (outcome.status != 0 && bytes == before_)) return "";
    return "the output is neither the old one nor the new one";
  }

 private:
  static void make_inputs(const std::string& folder, const std::string& name) {
    static const std::string model = [] {
      const Scratch scratch;
      write_bytes(scratch / "text", some_text("Both", 40));
      Tokenizer::train({scratch / "text"}, scratch / "model", {.vocab_size = 320});
      return read_bytes(scratch / "model");
    }();
    write_bytes(folder + "/tokenizer.model", model);
    write_bytes(folder + "/text", some_text(name, 30));
  }

  std::string work_, before_, after_;
};

/// The program itself resumes a run at step 4 and goes on to step 8.
class Pretraining : public Work {
 public:
  Pretraining() {
    const Scratch scratch;
    fill(scratch.path());
    const std::string whole =
        command_to(scratch.path(), 10) + " --set train.keep_last=9 --set train.save_every=1";
    EXPECT_EQ(std::system((whole + " >/dev/null 2>&1").c_str()), 0);
    for (const CheckpointSummary& saved : list_checkpoints(scratch / "run/checkpoints")) {
      weights_[saved.step] = tensors_of(saved.folder);
    }
    EXPECT_GE(weights_.size(), 7U);  // from step 4 on
  }
  void fill(const std::string& folder) const override {
    const std::string fixtures = STABLEMASK_SOURCE_DIR "/tests/fixtures/";
    fs::copy_file(fixtures + "checkpoint-v0-data/train.shard", folder + "/shard");
    fs::copy_file(fixtures + "checkpoint-v0/tokenizer.model", folder + "/tokenizer.model");
    write_bytes(folder + "/config.json", R"({
      "model": {"layers": 1, "channels": 8, "heads": 2, "ffn_hidden": 16},
      "train": {"context": 16, "batch": 2, "device": "cpu", "log_every": 1, "save_every": 2},
      "schedule": {"kind": "constant", "warmup_steps": 0}})");
    EXPECT_EQ(std::system((command_to(folder, 4) + " >/dev/null 2>&1").c_str()), 0);
  }
  std::string program() const override { return "env OMP_NUM_THREADS=1 " STABLEMASK_BINARY; }
  std::string arguments(const std::string& folder) const override { return to_step(folder, 8); }
  std::string next_arguments(const std::string& folder) const override {
    return to_step(folder, 10);
  }
  std::string refusals() const override { return "234"; }
  std::string loss(const std::string& folder, const Outcome& outcome) const override {
    return loss_before(folder, outcome, outcome.status == 0 ? 8 : 4);
  }
  std::string loss_at_end(const std::string& folder, const Outcome& first) const override {
    return loss_before(folder, first, 10);
  }

 private:
  static std::string to_step(const std::string& folder, int step) {
    return "pretrain " + folder + "/config.json --quiet --set train.out=" + folder +
           "/run --set data.tokenizer=" + folder + "/tokenizer.model --set 'data.train=[\"" +
           folder + "/shard\"]' --set train.steps=" + std::to_string(step);
  }
  std::string command_to(const std::string& folder, int step) const {
    return program() + " " + to_step(folder, step);
  }
  static std::string tensors_of(const std::string& checkpoint) {
    return read_bytes(checkpoint + "/model.safetensors") +
           read_bytes(checkpoint + "/optimizer.safetensors");
  }
  std::string loss_before(const std::string& folder, const Outcome& outcome,
                          int64_t at_least) const {
    int64_t newest = 0;
    const auto has_right_bits = [&](const Checkpoint& checkpoint) {
      return tensors_of(checkpoint.folder) == weights_.at(checkpoint.step);
    };
    const std::string problem =
        checkpoint_problem(folder + "/run/checkpoints", at_least, newest, has_right_bits);
    if (!problem.empty()) return problem;
    const auto steps = steps_of_lines(folder + "/run/metrics.jsonl");
    return has_steps(steps, newest, outcome) ? "" : "metrics.jsonl lacks a step";
  }

  std::map<int64_t, std::string> weights_;  // of an undisturbed run
};

std::unique_ptr<Work> work_of(const std::string& name) {
  if (name == "Save") return std::make_unique<Saving>(false);
  if (name == "Replace") return std::make_unique<Saving>(true);
  if (name == "SaveBest") return std::make_unique<SavingTheBest>();
  if (name == "Run") return std::make_unique<Training>(false);
  if (name == "Resume") return std::make_unique<Training>(true);
  if (name == "Pretrain") return std::make_unique<Pretraining>();
  return std::make_unique<Making>(name == "Prepare" ? "prepare" : "tokenizer");
}

class Faults : public testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  void SetUp() override {
    const std::string problem = strace_problem(errors());
    if (!problem.empty()) GTEST_SKIP() << problem;
    if (slow() && !tries_all_faults()) GTEST_SKIP() << "only with STABLEMASK_FAULTS=all";
    work_ = work_of(std::get<0>(GetParam()));
    fs::create_directory(scratch_ / "template");
    work_->fill(scratch_ / "template");
  }

  std::string errors() const { return scratch_ / "errors"; }
  std::string folder() const { return scratch_ / "folder"; }
  std::string fault() const { return std::get<1>(GetParam()); }
  bool slow() const { return std::get<0>(GetParam()) == std::string("Pretrain"); }
  bool kills() const { return fault() == "signal=KILL"; }

  void reset() const {
    fs::remove_all(folder());
    fs::copy(scratch_ / "template", folder(), fs::copy_options::recursive);
  }

  /// The commands that run the work, each with a fault at another call.
  std::vector<std::string> disturbed() const {
    reset();
    const std::string trace = strace_command(std::string("trace=") + kFileCalls, scratch_ / "log");
    const Outcome plain = run_command(trace + " -y " + work_->command(folder()), errors());
    EXPECT_EQ(plain.status, 0) << plain.errors;
    EXPECT_EQ(work_->loss(folder(), plain), "");
    // Not of the program: those of LibTorch, which looks at the processor in /sys.
    const auto points = call_points(read_bytes(scratch_ / "log"), folder(), slow());
    std::vector<std::string> commands;
    int writes = 0;
    for (const auto& [call, number] : points) {
      const std::string when = ":when=" + std::to_string(number);
      const bool is_write = call == "write" || call == "pwrite64";
      if (fault() != "short") {
        commands.push_back(strace_command("inject=" + call + ":" + fault() + when) + " " +
                           work_->command(folder()));
      } else if (is_write) {
        commands.push_back("SHORT_WRITE=" + std::to_string(++writes) + " " +
                           work_->command(folder()));
      }
    }
    return commands;
  }

  /// Runs the work with a fault; then once more without one.
  void try_fault(const std::string& command) {
    reset();
    const Outcome outcome = run_command(command, errors());
    if (kills()) {
      // How far the program's thread that reads ahead gets is a matter of time.
      const bool not_met = slow() && outcome.status == 0;
      ASSERT_TRUE(outcome.status == kKilled || not_met) << outcome.status << outcome.errors;
    } else if (outcome.status != 0) {
      ASSERT_NE(work_->refusals().find(std::to_string(outcome.status)), std::string::npos)
          << outcome.status << outcome.errors;
      const size_t error = outcome.errors.find("error: ");
      ASSERT_NE(error, std::string::npos);
      EXPECT_EQ(outcome.errors.find('\n', error), outcome.errors.size() - 1) << outcome.errors;
      EXPECT_NE(outcome.errors.find(folder(), error), std::string::npos) << outcome.errors;
      ++refused_;
    } else if (command.find("inject=fsync:error=E") != std::string::npos &&
               fault() != "error=EINTR") {
      EXPECT_NE(outcome.errors.find("cannot be flushed"), std::string::npos);
    } else if (fault() == "short") {
      EXPECT_EQ(outcome.errors.find("warning"), std::string::npos) << outcome.errors;
    }
    EXPECT_EQ(work_->loss(folder(), outcome), "") << outcome.errors;

    const Outcome again = run_command(work_->next_command(folder()), errors());
    ASSERT_EQ(again.status, 0) << again.errors;
    EXPECT_EQ(work_->loss_at_end(folder(), outcome), "") << outcome.errors;
    EXPECT_EQ(leftovers(folder()), std::vector<std::string>());
  }

  Scratch scratch_;
  std::unique_ptr<Work> work_;
  int refused_ = 0;
};

TEST_P(Faults, LoseNothing) {
  const std::vector<std::string> commands = disturbed();
  const size_t stride = tries_all_faults() && !slow() ? 1 : 20;
  // Other calls for each kind of fault.
  const size_t first = stride == 1 ? 0 : (fault().size() + fault().back()) % stride;
  int tried = 0, lost = 0;
  for (size_t k = std::min(first, commands.size() - 1); k < commands.size(); k += stride) {
    const testing::TestResult& result =
        *testing::UnitTest::GetInstance()->current_test_info()->result();
    const int failures_before = result.total_part_count();
    SCOPED_TRACE(commands[k]);
    try_fault(commands[k]);
    ++tried;
    lost += result.total_part_count() > failures_before;
  }
  EXPECT_GT(tried, 0);
  std::printf("%s, %s: %d faults, %d refused, %d lost\n", std::get<0>(GetParam()), fault().c_str(),
              tried, refused_, lost);
  totals->add(tried, lost);
}

std::string name_of(const testing::TestParamInfo<std::tuple<const char*, const char*>>& info) {
  const std::string fault = std::get<1>(info.param);
  return std::string(std::get<0>(info.param)) + "_" + fault.substr(fault.find('=') + 1);
}

constexpr const char* kInjected[] = {"signal=KILL", "error=ENOSPC", "error=EIO", "error=EINTR"};
constexpr const char* kWorks[] = {"Save",   "Replace", "SaveBest", "Run",
                                  "Resume", "Prepare", "Tokenizer"};

INSTANTIATE_TEST_SUITE_P(Injected, Faults,
                         testing::Combine(testing::ValuesIn(kWorks), testing::ValuesIn(kInjected)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Short, Faults,
                         testing::Combine(testing::ValuesIn(kWorks), testing::Values("short")),
                         name_of);
/// The program takes a second to start.
INSTANTIATE_TEST_SUITE_P(Program, Faults,
                         testing::Combine(testing::Values("Pretrain"),
                                          testing::ValuesIn(kInjected)),
                         name_of);

/// A write that claims more than it did.
TEST(Fault, AWriteThatLiesIsNoticed) {
  const Scratch scratch;
  const std::string problem = strace_problem(scratch / "errors");
  if (!problem.empty()) GTEST_SKIP() << problem;
  const Saving work(false);
  const std::string folder = scratch / "folder";
  const auto save = [&](const std::string& expression, const std::string& log) {
    fs::remove_all(folder);
    work.fill(folder);
    return run_command(strace_command(expression, log) + " " + work.command(folder),
                       scratch / "errors");
  };
  save("trace=write", scratch / "log");
  std::set<CallPoint> writes = call_points(read_bytes(scratch / "log"), "");
  writes.erase(std::prev(writes.end()));  // a line for people
  size_t noticed = 0;
  for (const auto& [call, number] : writes) {
    const std::string when = std::to_string(number);
    const Outcome outcome = save("inject=write:retval=1:when=" + when, "/dev/null");
    EXPECT_EQ(work.loss(folder, outcome), "") << when;
    EXPECT_NE(outcome.errors.find("short write"), std::string::npos) << when << outcome.errors;
    noticed += outcome.status == 4;
  }
  // LATEST comes after the checkpoint is in place: a warning.
  EXPECT_EQ(noticed, writes.size() - 1);
}

/// Every call that gives or takes a name, and so every point between the save, BEST and retention.
TEST(Fault, BestNamesACheckpointAtAnyPointOfASave) {
  const Scratch scratch;
  const std::string problem = strace_problem(scratch / "errors");
  if (!problem.empty()) GTEST_SKIP() << problem;
  const SavingTheBest work;
  const std::string folder = scratch / "folder";
  const auto save = [&](const std::string& expression, const std::string& log) {
    fs::remove_all(folder);
    work.fill(folder);
    return run_command(strace_command(expression, log) + " " + work.command(folder),
                       scratch / "errors");
  };
  save(std::string("trace=") + kFileCalls, scratch / "log");
  int killed = 0, warned = 0;
  for (const auto& [call, number] : call_points(read_bytes(scratch / "log"), folder)) {
    if (call != "openat" && !call.starts_with("rename") && !call.starts_with("unlink")) continue;
    for (const std::string fault : {"signal=KILL", "error=ENOSPC"}) {
      const std::string what = call + ":" + fault + ":when=" + std::to_string(number);
      const Outcome outcome = save("inject=" + what, "/dev/null");
      EXPECT_EQ(work.loss(folder, outcome), "") << what << outcome.errors;
      killed += outcome.status == kKilled;
      warned += outcome.errors.find("BEST: ") != std::string::npos;
      EXPECT_EQ(run_command(work.command(folder), scratch / "errors").status, 0) << what;
      EXPECT_EQ(work.loss_at_end(folder, outcome), "") << what;
    }
  }
  EXPECT_GT(killed, 10);
  EXPECT_GE(warned, 2) << "it cannot be opened or renamed";
}

}  // namespace
}  // namespace stablemask
