#pragma once

namespace stablemask {

/// SIGTERM, SIGINT and SIGUSR1 set a flag that every long loop polls; a second signal ends the
/// process at once. Idempotent.
void install_stop_handlers();

/// 0, or the number of the signal that asked the process to stop. Async-signal-safe, cheap.
int stop_signal();

/// Sets the flag as a signal would; 0 clears it. For tests and embedding programs.
void request_stop(int signal);

}  // namespace stablemask
