#pragma once

#include <string>

namespace stablemask {

/// Writes the line "stablemask: warning: MESSAGE" to stderr.
void log_warning(const std::string& message);

/// Writes the line MESSAGE to stderr.
void log_info(const std::string& message);

/// printf into a std::string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace stablemask
