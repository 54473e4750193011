#include "src/dist/signs.h"

#include <gtest/gtest.h>

namespace stablemask {
namespace {

using dist::End;
using dist::Sign;
using dist::Signs;

constexpr double kSilence_s = 6, kTimeout_s = 60;

std::string running(int64_t beat, int64_t calls = 0, int64_t waiting_ms = -1) {
  return Sign{beat, Sign::kRunning, calls, waiting_ms}.text();
}

TEST(Sign, IsReadAsItWasWritten) {
  const Sign sign = Sign::parse(Sign{7, Sign::kDone, 123456789012, 600000}.text());
  EXPECT_EQ(sign.beat, 7);
  EXPECT_EQ(sign.state, Sign::kDone);
  EXPECT_EQ(sign.calls, 123456789012);
  EXPECT_EQ(sign.waiting_ms, 600000);
  EXPECT_EQ(Sign::parse(Sign().text()).waiting_ms, -1);
}

TEST(End, IsReadAsItWasWritten) {
  const End end = End::parse(End{End::kFailure, 12, "data: a shard  is damaged"}.text());
  EXPECT_EQ(end.kind, End::kFailure);
  EXPECT_EQ(end.rank, 12);
  EXPECT_EQ(end.detail, "data: a shard  is damaged");
}

TEST(End, MessageNamesTheProcessAndTellsItOfItself) {
  const std::vector<std::string> names = {"process 0 (a)", "process 1 (b)"};
  EXPECT_EQ((End{End::kFailure, 1, "disk full"}.message(names, 0)),
            "process 1 (b) ended: disk full");
  EXPECT_TRUE((End{End::kSilence, 1, "6"}.message(names, 0))
                  .starts_with("process 1 (b) gave no sign of life for 6 s"));
  EXPECT_TRUE(
      (End{End::kSilence, 1, "6"}.message(names, 1)).starts_with("this process was stopped"));
  EXPECT_TRUE(
      (End{End::kTimeout, 0, "600"}.message(names, 1))
          .starts_with(
              "process 0 (a) has kept the others waiting for 600 s (train.peer_timeout_s)"));
  EXPECT_TRUE((End{End::kStuck, 1, "600"}.message(names, 0)).ends_with("fewest calls"));
}

TEST(CutToLine, EndsAtALineEndAndHasNoControlCharacters) {
  EXPECT_EQ(dist::cut_to_line("a\tb\nframe #0"), "a b");
  EXPECT_EQ(dist::cut_to_line(std::string(5000, 'x')), std::string(400, 'x'));
}

TEST(Signs, SilenceIsTheTimeWithoutANewBeat) {
  Signs signs(0, 3, kSilence_s, kTimeout_s);
  for (int64_t second = 0; second <= 6; ++second) {
    signs.see(1, running(second), 1);
    signs.see(2, running(1), 1);
    EXPECT_FALSE(signs.silent()) << second;
  }
  signs.see(2, running(1), 1);
  ASSERT_TRUE(signs.silent());
  EXPECT_EQ(signs.silent()->kind, End::kSilence);
  EXPECT_EQ(signs.silent()->rank, 2);
  signs.see(2, running(2), 1);
  EXPECT_FALSE(signs.silent()) << "it is back before anybody has decided";
}

TEST(Signs, ThoseThatHaveLeftMayBeSilent) {
  Signs signs(0, 3, kSilence_s, kTimeout_s);
  EXPECT_FALSE(signs.others_have_left());
  for (int i = 0; i < 3; ++i) {
    signs.see(1, Sign{9, Sign::kDone, 0, -1}.text(), 5);
    signs.see(2, Sign{9, Sign::kEnding, 0, -1}.text(), 5);
  }
  EXPECT_FALSE(signs.silent());
  EXPECT_TRUE(signs.others_have_left());
  EXPECT_TRUE(signs.done(1));
  EXPECT_FALSE(signs.done(2));
}

TEST(Signs, LostProcessesNeedNotBeWaitedFor) {
  Signs signs(0, 2, kSilence_s, kTimeout_s);
  signs.see(1, running(1), 1);
  EXPECT_FALSE(signs.others_have_left());
  signs.see(1, running(1), 7);
  EXPECT_TRUE(signs.others_have_left());
}

TEST(Signs, TheProcessThatDoesNotWaitIsTheSlowOne) {
  Signs signs(0, 3, kSilence_s, kTimeout_s);
  signs.see(0, running(1, 5, 60000), 1);
  signs.see(1, running(1, 5, 59000), 1);
  signs.see(2, running(1, 4), 1);
  EXPECT_FALSE(signs.slow()) << "not longer than the timeout";
  signs.see(0, running(2, 5, 60001), 1);
  ASSERT_TRUE(signs.slow());
  EXPECT_EQ(signs.slow()->kind, End::kTimeout);
  EXPECT_EQ(signs.slow()->rank, 2);
  signs.see(2, Sign{2, Sign::kDone, 4, -1}.text(), 1);
  ASSERT_TRUE(signs.slow()) << "one that has left does not answer either";
  EXPECT_EQ(signs.slow()->rank, 2);
}

TEST(Signs, ProcessesThatWaitForEachOtherAreStuck) {
  Signs signs(0, 3, kSilence_s, kTimeout_s);
  signs.see(0, running(1, 5, 70000), 1);
  signs.see(1, running(1, 4, 70000), 1);
  signs.see(2, running(1, 5, 100), 1);
  EXPECT_FALSE(signs.slow()) << "process 2 has just come, and the others may go on";
  signs.see(2, running(2, 5, 7000), 1);
  ASSERT_TRUE(signs.slow());
  EXPECT_EQ(signs.slow()->kind, End::kStuck);
  EXPECT_EQ(signs.slow()->rank, 1);
}

}  // namespace
}  // namespace stablemask
