// Ends or disturbs a save at each of its system calls (strace's fault injection) and looks at what
// is left: an older checkpoint or the new one, whole, whatever happened.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/io/checkpoint.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

constexpr int kKilled = 128 + 9;
const char* const kCalls[] = {"openat",    "write",  "fsync",    "close", "mkdir",     "rename",
                              "renameat2", "unlink", "unlinkat", "flock", "getdents64"};

struct Outcome {
  int status = 0;      // exit code, or 128 + signal
  std::string errors;  // stderr
};

Outcome run(const std::string& command, const std::string& error_file) {
  const int result = std::system((command + " 2>" + error_file).c_str());
  const int status = WIFEXITED(result) ? WEXITSTATUS(result) : 128 + WTERMSIG(result);
  return {status, read_bytes(error_file)};
}

/// What a save does, seen by its system calls: for each name the first and last call that belong to
/// the save, counted from 1, and not to the start of the program.
using CallRange = std::pair<int, int>;

std::map<std::string, CallRange> calls_of(const std::string& log, const std::string& root) {
  std::map<std::string, int> counts;
  std::map<std::string, CallRange> ranges;
  bool begun = false;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    begun = begun || line.find(root) != std::string::npos;
    const size_t name = line.find_first_not_of("0123456789 ");
    const size_t end = line.find('(');
    if (name == std::string::npos || end == std::string::npos || end < name) continue;
    const std::string call = line.substr(name, end - name);
    const int count = ++counts[call];
    if (begun) ranges.try_emplace(call, count, count).first->second.second = count;
  }
  return ranges;
}

class Reliability : public testing::Test {
 protected:
  void SetUp() override {
    const Outcome probe =
        run("strace -f --seccomp-bpf -o /dev/null -e inject=fsync:error=EIO true", errors());
    if (probe.status != 0) GTEST_SKIP() << "strace cannot trace here: " << probe.errors;
    for (const int64_t step : {1, 2, 3}) {
      save_checkpoint(scratch_ / "template", TinyCheckpoint(step).content(), {100, 0});
    }
  }

  std::string errors() const { return scratch_ / "errors"; }
  std::string root() const { return scratch_ / "root"; }

  /// The root as it is before each save: steps 1 and 2, and 3 when it is to be replaced.
  void reset(bool replace) {
    fs::remove_all(root());
    fs::copy(scratch_ / "template", root(), fs::copy_options::recursive);
    if (!replace) fs::remove_all(root() + "/step-00000003");
  }

  Outcome save_under_strace(const std::string& options, const std::string& log = "/dev/null") {
    return run("strace -f --seccomp-bpf -qq -o " + log + " " + options + " " + CHECKPOINT_SAVER +
                   " " + root() + " 3 2",
               errors());
  }

  std::map<std::string, CallRange> calls(bool replace) {
    reset(replace);
    std::string names;
    for (const char* call : kCalls) {
      names += names.empty() ? "" : ",";
      names += call;
    }
    const Outcome plain = save_under_strace("-e trace=" + names, scratch_ / "log");
    EXPECT_EQ(plain.status, 0) << plain.errors;
    return calls_of(read_bytes(scratch_ / "log"), root());
  }

  /// Calls `visit(call, k)` for each system call of a save.
  template <typename Visit>
  int for_each_call(bool replace, Visit visit) {
    int points = 0;
    for (const auto& [call, range] : calls(replace)) {
      for (int k = range.first; k <= range.second; ++k, ++points) {
        reset(replace);
        visit(call, k);
        if (HasFatalFailure()) return points;
      }
    }
    return points;
  }

  /// No checkpoint bears its final name that is not whole; the newest is at least step 2.
  void expect_nothing_lost(const std::string& what) {
    for (const CheckpointSummary& summary : list_checkpoints(root())) {
      std::string stem;
      if (is_temporary_name(fs::path(summary.folder).filename(), stem)) continue;
      EXPECT_TRUE(verify_checkpoint(summary.folder).empty()) << what << ": " << summary.folder;
    }
    const std::optional<Checkpoint> newest = load_latest_checkpoint(root());
    ASSERT_TRUE(newest) << what;
    EXPECT_GE(newest->step, 2) << what;
    EXPECT_TRUE(is_tiny_checkpoint(*newest)) << what;
  }

  int leftovers() const {
    int count = 0;
    std::string stem;
    for (const auto& entry : fs::directory_iterator(root())) {
      count += is_temporary_name(entry.path().filename(), stem);
    }
    return count;
  }

  Scratch scratch_;
};

TEST_F(Reliability, KilledAtEverySystemCallOfASave) {
  int points = 0;
  for (const bool replace : {false, true}) {
    points += for_each_call(replace, [&](const std::string& call, int k) {
      const std::string what = call + " " + std::to_string(k);
      const Outcome outcome =
          save_under_strace("-e inject=" + call + ":signal=KILL:when=" + std::to_string(k));
      ASSERT_EQ(outcome.status, kKilled) << what << outcome.errors;
      expect_nothing_lost(what);
      save_checkpoint(root(), TinyCheckpoint(4).content(), {2, 0});
      EXPECT_EQ(leftovers(), 0) << what;
      EXPECT_EQ(read_bytes(root() + "/LATEST"), "step-00000004\n") << what;
    });
  }
  EXPECT_GT(points, 60);
  std::printf("%d kill points, %s\n", points, HasFailure() ? "some lost" : "0 lost");
}

/// An error at each call is either reported with exit code 4 and one line, or the save succeeds.
class ReliabilityError : public Reliability, public testing::WithParamInterface<const char*> {};

TEST_P(ReliabilityError, LosesNothing) {
  int refused = 0;
  int survived = 0;
  for (const bool replace : {false, true}) {
    for_each_call(replace, [&](const std::string& call, int k) {
      const std::string what = call + " " + std::to_string(k);
      const Outcome outcome =
          save_under_strace("-e inject=" + call + ":" + GetParam() + ":when=" + std::to_string(k));
      ASSERT_TRUE(outcome.status == 0 || outcome.status == 4)
          << what << ": " << outcome.status << outcome.errors;
      expect_nothing_lost(what);
      ++(outcome.status == 0 ? survived : refused);
      if (outcome.status == 0) {
        EXPECT_EQ(load_latest_checkpoint(root())->step, 3) << what;
      } else {
        EXPECT_NE(outcome.errors.find(root()), std::string::npos) << what << outcome.errors;
        EXPECT_TRUE(fs::exists(root() + "/step-00000001")) << what;
        EXPECT_TRUE(fs::exists(root() + "/step-00000002")) << what;
      }
      save_checkpoint(root(), TinyCheckpoint(4).content(), {2, 0});
      EXPECT_EQ(leftovers(), 0) << what;
    });
  }
  EXPECT_GT(survived, 0);
  std::printf("%s: %d saves refused, %d survived, %s\n", GetParam(), refused, survived,
              HasFailure() ? "some lost" : "0 lost");
}

INSTANTIATE_TEST_SUITE_P(Injected, ReliabilityError,
                         testing::Values("error=ENOSPC", "error=EIO", "error=EINTR"),
                         [](const auto& info) { return std::string(info.param).substr(6); });

// Else a crash of the machine could take the folders with all that is in them.
TEST_F(Reliability, EveryNewFolderOfAPathIsSynced) {
  const std::string root = scratch_ / "new/run/checkpoints";
  const Outcome saved = run("strace -f -y -qq -e trace=mkdir,fsync -o " + (scratch_ / "log") + " " +
                                CHECKPOINT_SAVER + " " + root + " 3 2",
                            errors());
  ASSERT_EQ(saved.status, 0) << saved.errors;
  const std::string log = read_bytes(scratch_ / "log");
  size_t at = 0;
  const std::string parents[] = {scratch_.path(), scratch_ / "new", scratch_ / "new/run"};
  const char* const made[] = {"new", "new/run", "new/run/checkpoints"};
  for (int i = 0; i < 3; ++i) {
    for (const std::string& call : {"mkdir(\"" + (scratch_ / made[i]) + "\"", parents[i] + ">)"}) {
      at = log.find(call, at);
      ASSERT_NE(at, std::string::npos) << call << " is missing or late in\n" << log;
    }
  }
}

TEST_F(Reliability, AWriteThatClaimsMoreThanItDidIsNoticed) {
  const CallRange writes = calls(false).at("write");
  int noticed = 0;
  for (int k = writes.first; k <= writes.second; ++k) {
    reset(false);
    const Outcome outcome = save_under_strace("-e inject=write:retval=1:when=" + std::to_string(k));
    expect_nothing_lost("write " + std::to_string(k));
    // LATEST comes after the checkpoint is in place: a warning.
    EXPECT_NE(outcome.errors.find("short write"), std::string::npos) << k << outcome.errors;
    noticed += outcome.status == 4;
  }
  EXPECT_EQ(noticed, writes.second - writes.first);
}

}  // namespace
}  // namespace stablemask
