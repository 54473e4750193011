#include "stablemask/dist/agreement.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "stablemask/base/error.h"
#include "tests/dist/threads.h"

namespace stablemask {
namespace {

using dist::Fact;
using GroupPtr = std::shared_ptr<dist::Group>;

/// The message of each process's ConfigError; "": none.
std::vector<std::string> refusals(const std::vector<std::vector<Fact>>& facts) {
  std::vector<std::string> messages(facts.size());
  testing::run_processes(static_cast<int64_t>(facts.size()), [&](const GroupPtr& group) {
    try {
      dist::require_equal(*group, facts[group->rank()]);
    } catch (const ConfigError& error) {
      messages[group->rank()] = error.what();
    }
  });
  return messages;
}

TEST(Agreement, EqualFactsPass) {
  const std::vector<Fact> facts = {{"GPU", "A"}, {"", ""}, {"lines", "one\ntwo"}};
  EXPECT_EQ(refusals({facts, facts, facts}), std::vector<std::string>(3));
  dist::require_equal(*dist::single_process_group(), facts);
}

TEST(Agreement, AllProcessesNameTheFirstThatDiffersAndHow) {
  const std::vector<Fact> first = {{"/train/steps", "70"}, {"GPU", "A"}, {"program", "1"}};
  const std::vector<Fact> other = {{"/train/steps", "60"}, {"GPU", "A"}, {"extra", "x"}};
  const auto messages = refusals({first, first, other, other});
  for (const std::string& message : messages) EXPECT_EQ(message, messages[0]);
  EXPECT_EQ(messages[0].find("process 2 ("), 0u) << messages[0];
  EXPECT_NE(messages[0].find("differs from process 0 ("), std::string::npos) << messages[0];
  EXPECT_NE(messages[0].find("): /train/steps 60 instead of 70; program nothing instead of 1; "
                             "extra x instead of nothing; start all processes"),
            std::string::npos)
      << messages[0];
}

TEST(Agreement, TextOfTheFirstReachesAll) {
  testing::run_processes(3, [](const GroupPtr& group) {
    const std::string rank = std::to_string(group->rank());
    EXPECT_EQ(dist::text_of_first(*group, "text " + rank), "text 0");
    EXPECT_EQ(dist::text_of_first(*group, group->rank() == 0 ? "" : rank), "");
  });
  EXPECT_EQ(dist::text_of_first(*dist::single_process_group(), "alone"), "alone");
}

TEST(Agreement, OneProcessThatFailedEndsTheOthers) {
  std::atomic<int> lost = 0;
  testing::run_processes(3, [&](const GroupPtr& group) {
    EXPECT_FALSE(dist::any_failed(*group, ""));
    try {
      EXPECT_TRUE(dist::any_failed(*group, group->rank() == 1 ? "bad shard\nline" : ""));
      EXPECT_EQ(group->rank(), 1);
    } catch (const PeerLostError& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find("process 1 ("), 0u) << message;
      EXPECT_NE(message.find(") ended: bad shard line"), std::string::npos) << message;
      ++lost;
    }
  });
  EXPECT_EQ(lost, 2);
}

TEST(Agreement, TheProgramHasABuildId) {
  const auto [name, value] = dist::program_fact();
  EXPECT_EQ(name, "program (build id)");
  EXPECT_EQ(value.find_first_not_of("0123456789abcdef"), std::string::npos) << value;
  EXPECT_EQ(value, dist::program_fact().second);
}

}  // namespace
}  // namespace stablemask
