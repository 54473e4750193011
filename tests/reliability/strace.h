#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>

namespace stablemask {

/// What a command did.
struct Outcome {
  int status = 0;      ///< exit code, or 128 + signal
  std::string errors;  ///< stderr
};

/// Runs a shell command. Its stderr goes through the file `error_file`.
Outcome run_command(const std::string& command, const std::string& error_file);

/// The head of a command that runs another one under strace, for example with a fault at one system
/// call: strace_command("inject=write:error=EIO:when=3", log) + " program".
std::string strace_command(const std::string& expression, const std::string& log = "/dev/null");

/// "" where strace works; otherwise the reason why not.
std::string strace_problem(const std::string& error_file);

/// System calls on files and descriptors, for strace's trace=.
extern const char* const kFileCalls;

/// A system call of a program: its name, and its number among the calls of this name of its thread,
/// from 1, as strace counts for `when`.
using CallPoint = std::pair<std::string, int>;

/// The calls in strace's output from the first that mentions `folder`: what comes before belongs to
/// the start of the program. `only_there`: without those that do not mention it; strace's option -y
/// adds the paths of descriptors.
std::set<CallPoint> call_points(const std::string& log, const std::string& folder,
                                bool only_there = false);

}  // namespace stablemask
