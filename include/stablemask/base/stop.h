#pragma once

#include <stdexcept>
#include <string>

namespace stablemask {

/// Thrown by work that a stop signal ended before it had a result to return. main maps it to exit
/// code 128 + signal. It is not an Error, so handlers of errors do not catch it.
class Stopped : public std::runtime_error {
 public:
  /// what() is "stopped by SIGNAL_NAME while DOING", for example doing = "preparing text".
  Stopped(int signal, const std::string& doing);
  int signal() const { return signal_; }

 private:
  int signal_;
};

/// SIGTERM, SIGINT and SIGUSR1 set a flag that every long loop polls; a second signal ends the
/// process at once. Idempotent.
void install_stop_handlers();

/// 0, or the number of the signal that asked the process to stop. Async-signal-safe, cheap.
int stop_signal();

/// Sets the flag as a signal would. request_stop(0) clears it: a program that embeds the library
/// calls this after a stopped run, before it starts the next one.
void request_stop(int signal);

/// Throws Stopped when the flag is set; `doing` is the gerund phrase of its message.
void check_stop(const char* doing);

/// "Ctrl-C" for SIGINT, "SIGTERM", "SIGUSR1"; "signal N" for any other.
std::string signal_name(int signal);

}  // namespace stablemask
