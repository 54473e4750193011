#include "stablemask/base/log.h"

#include <cstdarg>
#include <cstdio>

namespace stablemask {
namespace {

// One call per line, so that lines of several threads or processes do not interleave.
void write_line(const std::string& line) {
  const std::string text = line + "\n";
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace

void log_warning(const std::string& message) { write_line("stablemask: warning: " + message); }

void log_info(const std::string& message) { write_line(message); }

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
