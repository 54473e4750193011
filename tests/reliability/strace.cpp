#include "tests/reliability/strace.h"

#include <sys/wait.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <sstream>

#include "tests/io/scratch.h"

namespace stablemask {

// A name with "?" may be unknown to the processor's architecture.
const char* const kFileCalls =
    "?open,openat,?creat,read,pread64,readv,write,pwrite64,writev,close,fsync,fdatasync,?ftruncate,"
    "?lseek,?mkdir,mkdirat,?rmdir,?rename,?renameat,renameat2,?unlink,unlinkat,flock,?fcntl,"
    "getdents64,?newfstatat,?stat,?lstat,?fstat,?statx,?statfs,?fstatfs,?access,faccessat,"
    "?faccessat2,?readlink,readlinkat,?poll,ppoll,copy_file_range,?sendfile,fallocate,dup,?dup2,"
    "dup3";

Outcome run_command(const std::string& command, const std::string& error_file) {
  const int result = std::system((command + " 2>" + error_file).c_str());
  const int status = WIFEXITED(result) ? WEXITSTATUS(result) : 128 + WTERMSIG(result);
  return {status, read_bytes(error_file)};
}

std::string strace_command(const std::string& expression, const std::string& log) {
  const std::string inject = "inject=";
  std::string options = " -e " + expression;
  if (expression.starts_with(inject)) {
    options +=
        " -e trace=" + expression.substr(inject.size(), expression.find(':') - inject.size());
  }
  // Stops the program at the named calls only. Then strace 6.1 sends no signals.
  if (expression.find(":signal=") == std::string::npos) options += " --seccomp-bpf";
  return "strace -f -qq -o " + log + options;
}

std::string strace_problem(const std::string& error_file) {
  const Outcome probe = run_command(strace_command("inject=fsync:error=EIO") + " true", error_file);
  return probe.status == 0 ? "" : "strace cannot trace here: " + probe.errors;
}

std::set<CallPoint> call_points(const std::string& log, const std::string& folder,
                                bool only_there) {
  std::map<std::string, std::map<std::string, int>> counts;  // of each thread
  std::set<CallPoint> before, points;
  bool begun = false;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    const bool there = line.find(folder) != std::string::npos;
    begun = begun || there;
    std::istringstream words(line);
    std::string thread, call;
    words >> thread;
    std::getline(words >> std::ws, call, '(');
    const bool is_name = std::all_of(call.begin(), call.end(),
                                     [](unsigned char c) { return std::isalnum(c) || c == '_'; });
    if (call.empty() || !is_name) continue;  // the second half of a call, or a signal
    const int number = ++counts[thread][call];
    if (!begun) before.insert({call, number});
    if (begun && (there || !only_there)) points.insert({call, number});
  }
  // A fault at the K-th call meets every thread.
  for (const CallPoint& point : before) points.erase(point);
  return points;
}

}  // namespace stablemask
