#include "src/commands/threads.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>

namespace stablemask::commands {
namespace {

/// Sets a variable of the environment, or removes it, while the object lives.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    const char* const before = std::getenv(name);
    if (before != nullptr) before_ = before;
    set(value);
  }
  ~Environment() { set(before_ ? before_->c_str() : nullptr); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  void set(const char* value) const {
    value == nullptr ? ::unsetenv(name_) : ::setenv(name_, value, 1);
  }

  const char* name_;
  std::optional<std::string> before_;
};

class ThreadsTest : public ::testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(2); }
  void TearDown() override { at::set_num_threads(before_); }

  const int before_ = at::get_num_threads();
};

TEST_F(ThreadsTest, ANumberIsTakenAndNoneLeavesTheLibrarysChoice) {
  use_threads({});
  EXPECT_EQ(at::get_num_threads(), 2);
  use_threads(3);
  EXPECT_EQ(at::get_num_threads(), 3);
}

TEST_F(ThreadsTest, SmallStepsTakeOneThreadUnlessANumberIsGiven) {
  {
    const Environment set("OMP_NUM_THREADS", "2");
    use_few_threads({});
    EXPECT_EQ(at::get_num_threads(), 2);
    use_few_threads(3);
    EXPECT_EQ(at::get_num_threads(), 3);
  }
  const Environment none("OMP_NUM_THREADS", nullptr);
  use_few_threads({});
  EXPECT_EQ(at::get_num_threads(), 1);
  use_few_threads(2);
  EXPECT_EQ(at::get_num_threads(), 2);
}

}  // namespace
}  // namespace stablemask::commands
