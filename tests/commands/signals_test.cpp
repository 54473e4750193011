#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/io/checkpoint.h"
#include "tests/commands/launch.h"

/// Signals, closed terminals and pipes, and input that does not come, met by the program.
namespace stablemask::testing {
namespace {

using Words = std::vector<std::string>;

class SignalsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { corpus_ = new TinyCorpus(); }
  static void TearDownTestSuite() { delete corpus_; }

  void SetUp() override {
    nlohmann::json config = tiny_json(*corpus_, "run");
    config["train"]["save_minutes"] = 0;
    write_file(folder_ / "tiny.json", config.dump(2));
  }
  void TearDown() override {
    for (const pid_t process : started_) ::kill(process, SIGKILL), ::waitpid(process, nullptr, 0);
  }

  static Words pretrain(const std::string& out, const std::string& steps) {
    return {"pretrain", "tiny.json", "--set", "train.out=" + out, "--set", "train.steps=" + steps};
  }

  /// Becomes the program in the folder of the test; for a child process.
  [[noreturn]] void become(const Words& words) const {
    std::vector<char*> pointers = {const_cast<char*>(STABLEMASK_BINARY)};
    for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
    pointers.push_back(nullptr);
    ::setenv("OMP_NUM_THREADS", "1", 1);
    if (::chdir((folder_ / ".").c_str()) == 0) ::execv(STABLEMASK_BINARY, pointers.data());
    ::_exit(98);
  }

  /// Starts the program with these three streams.
  pid_t start(const Words& words, int in, int out, int err) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(in, STDIN_FILENO), ::dup2(out, STDOUT_FILENO), ::dup2(err, STDERR_FILENO);
      become(words);
    }
    started_.push_back(child);
    return child;
  }

  /// A file of the test's folder for output, read by `said`.
  int output(const std::string& name) const {
    return ::open((folder_ / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  }
  std::string said(const std::string& name) const { return read_file(folder_ / name); }

  /// The exit code, or minus the signal that ended the process; -1000: it does not end.
  int code_of(pid_t process) {
    int status = 0;
    if (!wait_until([&] { return ::waitpid(process, &status, WNOHANG) == process; }, 20)) {
      return -1000;
    }
    std::erase(started_, process);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  bool trains(const std::string& run) const {
    return wait_until([&] { return !read_file(folder_ / (run + "/metrics.jsonl")).empty(); });
  }
  int64_t saved_step(const std::string& run) const {
    return load_checkpoint(resolve_checkpoint(folder_ / run)).step;
  }

  inline static TinyCorpus* corpus_ = nullptr;
  TemporaryFolder folder_;
  std::vector<pid_t> started_;
};

/// The two ends of a pipe.
struct Pipe {
  Pipe() { EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0); }
  ~Pipe() { close_reader(), ::close(ends[1]); }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void close_reader() {
    if (ends[0] >= 0) ::close(ends[0]);
    ends[0] = -1;
  }
  int ends[2] = {-1, -1};
};

TEST_F(SignalsTest, SaveAndTheSameCommandGoesOn) {
  const std::vector<std::pair<int, std::string>> signals = {{SIGQUIT, "SIGQUIT"},
                                                            {SIGXCPU, "SIGXCPU"}};
  std::vector<pid_t> runs;
  for (const auto& [signal, name] : signals) {
    runs.push_back(start(pretrain(name, "1000000"), STDIN_FILENO, output(name + ".out"),
                         output(name + ".err")));
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto& [signal, name] = signals[i];
    ASSERT_TRUE(trains(name)) << said(name + ".err");
    ::kill(runs[i], signal);
    EXPECT_EQ(code_of(runs[i]), 128 + signal) << said(name + ".err");
    EXPECT_NE(said(name + ".err").find("stopped by " + name + " while training"), std::string::npos)
        << said(name + ".err");
  }
  const int64_t step = saved_step("SIGQUIT");
  const pid_t next = start(pretrain("SIGQUIT", std::to_string(step + 2)), STDIN_FILENO,
                           output("next.out"), output("next.err"));
  EXPECT_EQ(code_of(next), 0) << said("next.err");
  EXPECT_EQ(saved_step("SIGQUIT"), step + 2);
}

TEST_F(SignalsTest, AClosedTerminalSaves) {
  int terminal = -1;
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  if (child == 0) become(pretrain("run", "1000000"));
  started_.push_back(child);
  ASSERT_TRUE(trains("run"));
  ::close(terminal);  // every write fails from now on, and the system sends SIGHUP
  EXPECT_EQ(code_of(child), 128 + SIGHUP);
  EXPECT_GT(saved_step("run"), 0);
}

// As with "| head -1": the run does not need its readers.
TEST_F(SignalsTest, LostOutputDoesNotEndARun) {
  Pipe lost;
  const pid_t all = start(pretrain("all", "12"), STDIN_FILENO, lost.ends[1], lost.ends[1]);
  const pid_t out = start(pretrain("some", "12"), STDIN_FILENO, lost.ends[1], output("err"));
  lost.close_reader();
  EXPECT_EQ(code_of(out), 0) << said("err");
  EXPECT_EQ(said("err"),
            "stablemask: warning: standard output was lost; the run is not affected\n");
  EXPECT_EQ(code_of(all), 0);
  for (const char* run : {"all", "some"}) EXPECT_EQ(saved_step(run), 12);
}

TEST_F(SignalsTest, LostOutputIsAnErrorWhereItIsTheResult) {
  Pipe lost;
  lost.close_reader();
  const pid_t show =
      start({"config", "show", "tiny.json"}, STDIN_FILENO, lost.ends[1], output("err"));
  EXPECT_EQ(code_of(show), 1);
  EXPECT_EQ(said("err").find("stablemask: error: standard output: cannot be written: Broken pipe"),
            0u)
      << said("err");
}

/// Whether the process has a handler of SIGTERM: a signal before would end it as any program.
bool is_ready(pid_t process) {
  std::ifstream status("/proc/" + std::to_string(process) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("SigCgt:")) {
      return (std::stoull(line.substr(7), nullptr, 16) >> (SIGTERM - 1) & 1) != 0;
    }
  }
  return false;
}

TEST_F(SignalsTest, WaitingForInputEndsAtTheFirstOne) {
  ASSERT_EQ(::mkfifo((folder_ / "fifo").c_str(), 0600), 0);
  const std::string& tokenizer = corpus_->tokenizer;
  const std::vector<Words> waiting = {
      {"tokenizer", "encode", "--tokenizer", tokenizer, "--input", "-"},
      {"tokenizer", "decode", "--tokenizer", "fifo", "--input", "-"},
      {"data", "prepare", "--tokenizer", tokenizer, "--input", "fifo", "--output", "new.shard"},
      {"generate", "--checkpoint", "run", "--prompt", "-"},
      {"config", "check", "fifo"}};
  Pipe silent;
  std::vector<pid_t> processes;
  for (size_t i = 0; i < waiting.size(); ++i) {
    const std::string name = std::to_string(i);
    processes.push_back(
        start(waiting[i], silent.ends[0], output("out" + name), output("err" + name)));
  }
  for (size_t i = 0; i < waiting.size(); ++i) {
    const std::string name = std::to_string(i);
    SCOPED_TRACE(waiting[i][0] + " " + waiting[i][1] + ": " + said("err" + name));
    ASSERT_TRUE(wait_until([&] { return is_ready(processes[i]); }));
    ::kill(processes[i], SIGTERM);
    EXPECT_EQ(code_of(processes[i]), 128 + SIGTERM);
    EXPECT_EQ(said("out" + name), "");
    EXPECT_NE(said("err" + name).find("stopped by SIGTERM while "), std::string::npos);
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "new.shard"));
}

}  // namespace
}  // namespace stablemask::testing
