#pragma once

#include <cstdint>
#include <string>

namespace stablemask {

/// Writes the line "stablemask: warning: MESSAGE" to stderr.
void log_warning(const std::string& message);

/// Writes the line MESSAGE to stderr.
void log_info(const std::string& message);

/// For process `rank` of several that print to one terminal: process 0 prints as a process alone
/// does. From another one log_info prints nothing, and log_warning, if `warnings`, "process RANK: "
/// before the message.
void share_terminal(int64_t rank, bool warnings);
/// "process RANK: " in a process other than 0, "" in process 0 or alone.
std::string terminal_prefix();

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
