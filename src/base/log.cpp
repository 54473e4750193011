#include "stablemask/base/log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <vector>

namespace stablemask {
namespace {

struct Listeners {
  std::mutex mutex;  // held while a line is written
  std::vector<LogListener*> all;
};

Listeners& listeners() {
  static auto* const one = new Listeners;  // never destroyed: lines may be logged at exit
  return *one;
}

std::atomic<int64_t> terminal_rank = 0;
std::atomic<bool> warnings_shown = true;

// One call per line, so that lines of several threads or processes do not interleave.
void write_line(const std::string& line) {
  const std::string text = line + "\n";
  const std::lock_guard<std::mutex> lock(listeners().mutex);
  for (LogListener* listener : listeners().all) listener->before_log_line();
  std::fwrite(text.data(), 1, text.size(), stderr);
  for (LogListener* listener : listeners().all) listener->after_log_line();
}

}  // namespace

void add_log_listener(LogListener* listener) {
  const std::lock_guard<std::mutex> lock(listeners().mutex);
  listeners().all.push_back(listener);
}

void remove_log_listener(LogListener* listener) {
  const std::lock_guard<std::mutex> lock(listeners().mutex);
  std::erase(listeners().all, listener);
}

void log_warning(const std::string& message) {
  if (!warnings_shown) return;
  write_line("stablemask: warning: " + terminal_prefix() + message);
}

void log_info(const std::string& message) {
  if (terminal_rank == 0) write_line(message);
}

void share_terminal(int64_t rank, bool warnings) {
  terminal_rank = rank;
  warnings_shown = rank == 0 || warnings;
}

std::string terminal_prefix() {
  const int64_t rank = terminal_rank;
  return rank == 0 ? "" : "process " + std::to_string(rank) + ": ";
}

std::string format(const char* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  va_list again;
  va_copy(again, arguments);
  const int size = std::vsnprintf(nullptr, 0, pattern, arguments);
  va_end(arguments);
  std::string text(size > 0 ? static_cast<size_t>(size) : 0, '\0');
  if (size > 0) std::vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(again);
  return text;
}

}  // namespace stablemask
