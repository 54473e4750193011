#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <functional>
#include <set>
#include <thread>
#include <vector>

#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

TEST(Log, FormatsTextOfAnyLength) {
  EXPECT_EQ(format("%d of %s", 3, "four"), "3 of four");
  EXPECT_EQ(format("%s", std::string(5000, 'x').c_str()), std::string(5000, 'x'));
  EXPECT_EQ(format("%s", ""), "");
}

TEST(Log, WarningIsOneLineOnStderr) {
  testing::internal::CaptureStderr();
  log_warning("careful");
  log_info("hello");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "stablemask: warning: careful\nhello\n");
}

TEST(Log, OtherProcessesOfATerminalPrintWarningsWithTheirNumberOnly) {
  testing::internal::CaptureStderr();
  share_terminal(0, false);
  EXPECT_EQ(terminal_prefix(), "");
  log_warning("first");
  log_info("hello");
  share_terminal(2, false);
  EXPECT_EQ(terminal_prefix(), "process 2: ");
  log_warning("unheard");
  share_terminal(2, true);
  log_warning("careful");
  log_info("unheard");
  share_terminal(0, true);
  log_info("again");
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "stablemask: warning: first\nhello\nstablemask: warning: process 2: careful\nagain\n");
}

/// The dispositions of all signals and the flag are as before when it ends.
class StopTest : public testing::Test {
 protected:
  StopTest() {
    for (int signal = 1; signal <= SIGRTMAX; ++signal) sigaction(signal, nullptr, &before_[signal]);
  }
  ~StopTest() override {
    for (int signal = 1; signal <= SIGRTMAX; ++signal) sigaction(signal, &before_[signal], nullptr);
    request_stop(0);
  }

 private:
  std::array<struct sigaction, 65> before_{};
};

/// The signal that ends a process which does `work`; 0: `work` returned.
int ends_by(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit no_core = {0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    work();
    _exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

// The system says which signals end a process; those of faults are the only ones left to it.
TEST_F(StopTest, EverySignalThatEndsAProcessSetsTheFlagUnlessItIsAFault) {
  std::vector<int> stops = stop_signals();
  std::sort(stops.begin(), stops.end());
  const std::set<int> faults = {SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS},
                      others = {SIGKILL, SIGPIPE, SIGXFSZ};
  std::vector<int> ending;
  for (int signal = 1; signal <= SIGRTMAX; ++signal) {
    const bool reserved = signal >= __SIGRTMIN && signal < SIGRTMIN;  // by the C library
    const bool stopping =
        signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
    if (reserved || stopping || faults.contains(signal) || others.contains(signal)) continue;
    const auto meet = [signal] {
      ::signal(signal, SIG_DFL);
      ::raise(signal);
    };
    if (ends_by(meet) == signal) ending.push_back(signal);
  }
  EXPECT_EQ(stops, ending);

  for (const int signal : stops) ::signal(signal, SIG_DFL);
  install_stop_handlers();
  install_stop_handlers();
  for (const int signal : stops) {
    request_stop(0);
    EXPECT_EQ(stop_signal(), 0);
    raise(signal);
    EXPECT_EQ(stop_signal(), signal);
  }
}

TEST_F(StopTest, LostReadersAndFileSizeLimitsAreErrorsOfTheirWrites) {
  for (const int signal : {SIGPIPE, SIGXFSZ}) ::signal(signal, SIG_DFL);
  install_stop_handlers();
  raise(SIGXFSZ);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ::close(ends[0]);
  EXPECT_EQ(::write(ends[1], "x", 1), -1);
  EXPECT_EQ(errno, EPIPE);
  ::close(ends[1]);
  EXPECT_EQ(stop_signal(), 0);
}

TEST_F(StopTest, IgnoredSignalsStayIgnoredButForThoseThatAskForAStop) {
  for (const int signal : {SIGHUP, SIGQUIT, SIGUSR2, SIGINT, SIGTERM, SIGUSR1}) {
    ::signal(signal, SIG_IGN);  // as nohup and shells do
  }
  install_stop_handlers();
  for (const int signal : {SIGHUP, SIGQUIT, SIGUSR2}) raise(signal);
  EXPECT_EQ(stop_signal(), 0);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    request_stop(0);
    raise(signal);
    EXPECT_EQ(stop_signal(), signal);
  }
}

TEST_F(StopTest, HandlersOfOthersStay) {
  static int met = 0;
  ::signal(SIGPROF, [](int) { ++met; });
  install_stop_handlers();
  raise(SIGPROF);
  EXPECT_EQ(met, 1);
  EXPECT_EQ(stop_signal(), 0);
}

TEST_F(StopTest, ABlockedSignalIsHeardAllTheSame) {
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  install_stop_handlers();
  raise(SIGTERM);
  EXPECT_EQ(stop_signal(), SIGTERM);
}

TEST(Stop, CheckStopThrowsOnlyWhileTheFlagIsSet) {
  EXPECT_NO_THROW(check_stop("testing"));
  request_stop(SIGTERM);
  try {
    check_stop("testing");
    FAIL() << "no exception";
  } catch (const Stopped& stopped) {
    EXPECT_EQ(stopped.signal(), SIGTERM);
    EXPECT_STREQ(stopped.what(), "stopped by SIGTERM while testing");
  }
  request_stop(0);
  EXPECT_NO_THROW(check_stop("testing"));
}

TEST(Stop, MessagesNameTheSignal) {
  EXPECT_STREQ(Stopped(SIGINT, "testing").what(), "stopped by Ctrl-C while testing");
  EXPECT_EQ(signal_name(SIGUSR1), "SIGUSR1");
  EXPECT_EQ(signal_name(SIGHUP), "SIGHUP");
  EXPECT_EQ(signal_name(64), "signal 64");
}

void sleep_past_the_first_second() { std::this_thread::sleep_for(std::chrono::milliseconds(1050)); }

// A closed terminal, `timeout` and torchrun send several signals for one stop.
TEST(StopDeathTest, SignalsOfTheFirstSecondAndAutomaticOnesAreOneStop) {
  EXPECT_EXIT(
      {
        install_stop_handlers();
        for (const int signal : {SIGHUP, SIGTERM, SIGHUP, SIGINT, SIGQUIT}) raise(signal);
        sleep_past_the_first_second();
        for (const int signal : {SIGHUP, SIGXCPU, SIGUSR1, SIGALRM}) raise(signal);
        _exit(stop_signal() == SIGHUP ? 17 : 18);
      },
      testing::ExitedWithCode(17), "");
}

TEST(StopDeathTest, ALaterSignalEndsTheProcess) {
  EXPECT_EXIT(
      {
        install_stop_handlers();
        raise(SIGTERM);
        sleep_past_the_first_second();
        raise(SIGINT);
      },
      testing::ExitedWithCode(128 + SIGINT), "");
}

TEST(StopDeathTest, ALaterQuitDumpsCore) {
  const rlimit none = {0, 0};
  EXPECT_EXIT(
      {
        ::setrlimit(RLIMIT_CORE, &none);
        install_stop_handlers();
        raise(SIGTERM);
        sleep_past_the_first_second();
        raise(SIGQUIT);
      },
      testing::KilledBySignal(SIGQUIT), "");
}

}  // namespace
}  // namespace stablemask
