#pragma once

#include <string>

namespace stablemask {

/// Writes the line "stablemask: warning: MESSAGE" to stderr.
void log_warning(const std::string& message);

/// Writes the line MESSAGE to stderr.
void log_info(const std::string& message);

/// Told of every line that is logged. A display that redraws a line of the terminal gives way to
/// it.
class LogListener {
 public:
  virtual ~LogListener() = default;
  /// On the thread that logs; never for two lines at a time.
  virtual void before_log_line() = 0;
  virtual void after_log_line() = 0;
};
/// `listener` must be removed before it is destroyed. Not to be called while it is told of a line.
void add_log_listener(LogListener* listener);
void remove_log_listener(LogListener* listener);

/// printf into a std::string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace stablemask
