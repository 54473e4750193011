#include "stablemask/base/stop.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace stablemask {
namespace {

std::atomic<int> requested_signal{0};
static_assert(std::atomic<int>::is_always_lock_free,
              "the handler may only touch lock-free atomics");

extern "C" void on_stop_signal(int signal) {
  int none = 0;
  if (!requested_signal.compare_exchange_strong(none, signal)) _exit(128 + signal);
}

}  // namespace

void install_stop_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  // Without SA_RESTART a signal during a save would show up as EINTR in the middle of a write.
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaction(signal, &action, nullptr);
}

int stop_signal() { return requested_signal.load(std::memory_order_relaxed); }

void request_stop(int signal) { requested_signal.store(signal); }

void check_stop(const char* doing) {
  if (const int signal = stop_signal()) throw Stopped(signal, doing);
}

std::string signal_name(int signal) {
  switch (signal) {
    case SIGINT:
      return "Ctrl-C";
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "signal " + std::to_string(signal);
  }
}

Stopped::Stopped(int signal, const std::string& doing)
    : std::runtime_error("stopped by " + signal_name(signal) + " while " + doing),
      signal_(signal) {}

}  // namespace stablemask
