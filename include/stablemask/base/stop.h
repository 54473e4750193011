#pragma once

#include <stdexcept>
#include <string>
#include <vector>

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

/// The stop signals: all that can be caught and whose default action ends a process, except those
/// of a fault of the program (SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS), after
/// which its memory cannot be trusted. SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM,
/// SIGSTKFLT, SIGXCPU, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, and SIGRTMIN to SIGRTMAX.
std::vector<int> stop_signals();

/// Makes the stop signals set a flag that every long loop polls. Of later signals only SIGINT,
/// SIGTERM and SIGQUIT count, from one second after the first on: they end the process at once,
/// SIGQUIT with a core dump. A closed terminal, `timeout`, torchrun and the limit of CPU time send
/// several signals for one stop.
///
/// SIGINT, SIGTERM and SIGUSR1 are handled in any case. The others are left alone where they have
/// a handler, or are ignored, as SIGHUP is after nohup. Stop signals that are blocked are
/// unblocked. SIGPIPE and SIGXFSZ are ignored: a write that fails says so by EPIPE and EFBIG.
/// Idempotent.
void install_stop_handlers();

/// 0, or the number of the signal that asked the process to stop. Async-signal-safe, cheap.
int stop_signal();

/// Sets the flag as a signal would. request_stop(0) clears it: a program that embeds the library
/// calls this after a stopped run, before it starts the next one.
void request_stop(int signal);

/// Throws Stopped when the flag is set; `doing` is the gerund phrase of its message.
void check_stop(const char* doing);

/// "Ctrl-C" for SIGINT, "SIGTERM", "SIGHUP", …; "signal N" for one without a name.
std::string signal_name(int signal);

}  // namespace stablemask
