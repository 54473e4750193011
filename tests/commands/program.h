#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "tests/train/tiny_run.h"

namespace stablemask::testing {

struct Outcome {
  int code = 0;
  std::string out, err;
};

/// Runs `build/stablemask ARGUMENTS` in a shell in `folder`; `prefix` comes before it on the line,
/// its standard output goes to the file `out`.
inline Outcome run_program(const TemporaryFolder& folder, const std::string& arguments,
                           const std::string& prefix = "", const std::string& out = "out.txt") {
  const std::string line = "cd '" + folder / "." + "' && " + prefix + " '" STABLEMASK_BINARY "' " +
                           arguments + " >" + out + " 2>err.txt";
  const int status = std::system(("bash -c \"" + line + "\"").c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(folder / "out.txt"),
          read_file(folder / "err.txt")};
}

/// Starts it and returns its process; output goes to out.txt and err.txt of `folder`.
inline pid_t start_program(const TemporaryFolder& folder, std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), STABLEMASK_BINARY);
  arguments.push_back(nullptr);
  const pid_t child = ::fork();
  if (child != 0) return child;
  if (::chdir((folder / ".").c_str()) != 0) _exit(99);
  const auto redirect = [](const char* path, int stream) {
    ::dup2(::open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644), stream);
  };
  redirect("out.txt", STDOUT_FILENO);
  redirect("err.txt", STDERR_FILENO);
  ::execv(STABLEMASK_BINARY, const_cast<char* const*>(arguments.data()));
  _exit(98);
}

inline int exit_code_of(pid_t child) {
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/// Exactly one line on standard error, which holds `piece`, and this exit code.
inline void expect_refusal(const Outcome& outcome, int code, const std::string& piece) {
  EXPECT_EQ(outcome.code, code) << outcome.err;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_NE(outcome.err.find(piece), std::string::npos) << outcome.err << "lacks " << piece;
}

}  // namespace stablemask::testing
