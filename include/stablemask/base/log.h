#pragma once

#include <string>

namespace stablemask {

/// One line on stderr: "stablemask: warning: MESSAGE".
void log_warning(const std::string& message);

/// One line on stderr for the user who watches the run.
void log_info(const std::string& message);

/// printf-like formatting into a std::string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace stablemask
