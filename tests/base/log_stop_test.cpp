#include <gtest/gtest.h>
#include <signal.h>

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

TEST(Stop, SignalSetsTheFlag) {
  install_stop_handlers();
  install_stop_handlers();
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) {
    request_stop(0);
    EXPECT_EQ(stop_signal(), 0);
    raise(signal);
    EXPECT_EQ(stop_signal(), signal);
  }
  request_stop(0);
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
  EXPECT_EQ(signal_name(64), "signal 64");
}

TEST(StopDeathTest, SecondSignalEndsTheProcess) {
  EXPECT_EXIT(
      {
        install_stop_handlers();
        raise(SIGTERM);
        raise(SIGINT);
      },
      testing::ExitedWithCode(128 + SIGINT), "");
}

}  // namespace
}  // namespace stablemask
