#include "stablemask/base/stop.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <iterator>

namespace stablemask {
namespace {

/// Those that people and batch systems send to stop a program.
constexpr int kAlwaysHandled[] = {SIGINT, SIGTERM, SIGUSR1};

struct NamedSignal {
  int signal;
  const char* name;
};
constexpr NamedSignal kStopSignals[] = {
    {SIGINT, "Ctrl-C"},       {SIGTERM, "SIGTERM"}, {SIGUSR1, "SIGUSR1"}, {SIGHUP, "SIGHUP"},
    {SIGQUIT, "SIGQUIT"},     {SIGUSR2, "SIGUSR2"}, {SIGALRM, "SIGALRM"}, {SIGXCPU, "SIGXCPU"},
    {SIGVTALRM, "SIGVTALRM"}, {SIGPROF, "SIGPROF"}, {SIGIO, "SIGIO"},
#ifdef SIGSTKFLT
    {SIGSTKFLT, "SIGSTKFLT"},
#endif
#ifdef SIGPWR
    {SIGPWR, "SIGPWR"},
#endif
};

/// The write that they come with fails too, so nothing is missed.
constexpr int kIgnoredSignals[] = {SIGPIPE, SIGXFSZ};

constexpr int64_t kNanoseconds = 1'000'000'000;

std::atomic<int> requested_signal{0};
std::atomic<int64_t> requested_at{0};  // nanoseconds of the monotonic clock
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free,
              "the handler may only touch lock-free atomics");

int64_t now() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);  // async-signal-safe
  return int64_t{time.tv_sec} * kNanoseconds + time.tv_nsec;
}

/// Whether it was the first.
bool set_flag(int signal) {
  if (requested_signal.load() == 0) requested_at.store(now());  // before the flag is seen
  int none = 0;
  return requested_signal.compare_exchange_strong(none, signal);
}

extern "C" void on_stop_signal(int signal) {
  const int interrupted = errno;
  if (!set_flag(signal) && now() - requested_at.load() >= kNanoseconds) {
    if (signal == SIGINT || signal == SIGTERM) _exit(128 + signal);
    if (signal == SIGQUIT) {
      ::signal(SIGQUIT, SIG_DFL);
      ::raise(SIGQUIT);  // its core dump comes when this handler returns
    }
  }
  errno = interrupted;
}

}  // namespace

std::vector<int> stop_signals() {
  std::vector<int> signals;
  for (const NamedSignal& known : kStopSignals) signals.push_back(known.signal);
  for (int signal = SIGRTMIN; signal <= SIGRTMAX; ++signal) signals.push_back(signal);
  return signals;
}

void install_stop_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  // Without SA_RESTART a signal during a save would show up as EINTR in the middle of a write.
  action.sa_flags = SA_RESTART;
  sigset_t handled;
  sigemptyset(&handled);
  for (const int signal : stop_signals()) {
    struct sigaction before = {};
    if (sigaction(signal, nullptr, &before) != 0) continue;
    const bool always = std::find(std::begin(kAlwaysHandled), std::end(kAlwaysHandled), signal) !=
                        std::end(kAlwaysHandled);
    if (!always && ((before.sa_flags & SA_SIGINFO) != 0 || before.sa_handler != SIG_DFL)) continue;
    if (sigaction(signal, &action, nullptr) == 0) sigaddset(&handled, signal);
  }
  pthread_sigmask(SIG_UNBLOCK, &handled, nullptr);
  for (const int signal : kIgnoredSignals) ::signal(signal, SIG_IGN);
}

int stop_signal() { return requested_signal.load(std::memory_order_relaxed); }

void request_stop(int signal) {
  requested_signal.store(0);
  if (signal != 0) set_flag(signal);
}

void check_stop(const char* doing) {
  if (const int signal = stop_signal()) throw Stopped(signal, doing);
}

std::string signal_name(int signal) {
  for (const NamedSignal& known : kStopSignals) {
    if (known.signal == signal) return known.name;
  }
  return "signal " + std::to_string(signal);
}

Stopped::Stopped(int signal, const std::string& doing)
    : std::runtime_error("stopped by " + signal_name(signal) + " while " + doing),
      signal_(signal) {}

}  // namespace stablemask
