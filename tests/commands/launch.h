#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/commands/program.h"
#include "tests/dist/free_port.h"

namespace stablemask::testing {

/// Polls until `ready`, at most so long. Returns whether it was.
inline bool wait_until(const std::function<bool()>& ready, double limit_s = 60) {
  const auto begin = std::chrono::steady_clock::now();
  while (!ready()) {
    if (std::chrono::steady_clock::now() - begin > std::chrono::duration<double>(limit_s)) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

/// The processes of one command, with the environment that torchrun gives them; process 0 serves
/// the store. A process that still runs when the object ends is killed.
class Launch {
 public:
  using Arguments = std::vector<std::string>;
  /// `in_child` is called in a process before it becomes the program; its working folder is
  /// `folder` then.
  Launch(const TemporaryFolder& folder, int size,
         const std::function<Arguments(int rank)>& arguments,
         const std::function<void(int rank)>& in_child = {})
      : folder_(folder) {
    const std::string port = std::to_string(free_port());
    for (int rank = 0; rank < size; ++rank) {
      const std::vector<std::pair<std::string, std::string>> environment = {
          {"RANK", std::to_string(rank)},       {"WORLD_SIZE", std::to_string(size)},
          {"LOCAL_RANK", std::to_string(rank)}, {"LOCAL_WORLD_SIZE", std::to_string(size)},
          {"MASTER_ADDR", "127.0.0.1"},         {"MASTER_PORT", port}};
      Arguments words = {STABLEMASK_BINARY};
      const Arguments given = arguments(rank);
      words.insert(words.end(), given.begin(), given.end());
      start(rank, words, environment, in_child);
    }
  }
  Launch(const TemporaryFolder& folder, int size, const Arguments& arguments)
      : Launch(folder, size, [&](int) { return arguments; }) {}
  ~Launch() {
    for (const pid_t process : processes_) {
      if (process > 0) ::kill(process, SIGKILL), ::waitpid(process, nullptr, 0);
    }
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  void send(int rank, int signal) const { ::kill(processes_[rank], signal); }
  std::string out(int rank) const { return read_file(file("out", rank)); }
  std::string err(int rank) const { return read_file(file("err", rank)); }

  /// Waits for all processes and returns their exit codes, minus the signal for one that a signal
  /// ended; -1000 for one that had not ended after `limit_s`.
  std::vector<int> codes(double limit_s = 60) {
    std::vector<int> codes(processes_.size(), -1000);
    wait_until(
        [&] {
          bool all = true;
          for (size_t rank = 0; rank < processes_.size(); ++rank) {
            int status = 0;
            if (processes_[rank] > 0 && ::waitpid(processes_[rank], &status, WNOHANG) > 0) {
              codes[rank] = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
              processes_[rank] = 0;
            }
            all = all && processes_[rank] == 0;
          }
          return all;
        },
        limit_s);
    return codes;
  }
  /// What all processes wrote, for messages.
  std::string said() const {
    std::string text;
    for (int rank = 0; rank < static_cast<int>(processes_.size()); ++rank) {
      text += "process " + std::to_string(rank) + ":\n" + out(rank) + err(rank);
    }
    return text;
  }

 private:
  std::string file(const char* stream, int rank) const {
    return folder_ / (stream + std::to_string(rank) + ".txt");
  }

  void start(int rank, const Arguments& words,
             const std::vector<std::pair<std::string, std::string>>& environment,
             const std::function<void(int rank)>& in_child) {
    const pid_t child = ::fork();
    if (child != 0) {
      processes_.push_back(child);
      return;
    }
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    ::setenv("OMP_NUM_THREADS", "1", 1);
    const auto redirect = [&](const char* stream, int descriptor) {
      ::dup2(::open(file(stream, rank).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), descriptor);
    };
    redirect("out", STDOUT_FILENO);
    redirect("err", STDERR_FILENO);
    if (::chdir((folder_ / ".").c_str()) != 0) ::_exit(99);
    if (in_child) in_child(rank);
    std::vector<char*> pointers;
    for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
    pointers.push_back(nullptr);
    ::execv(STABLEMASK_BINARY, pointers.data());
    ::_exit(98);
  }

  const TemporaryFolder& folder_;
  std::vector<pid_t> processes_;  ///< by rank; 0: has ended
};

}  // namespace stablemask::testing
