// Runs with optimizer.state bf16.
#include <gtest/gtest.h>

#include <csignal>

#include "tests/train/tiny_run.h"

namespace stablemask::testing {
namespace {

class Bf16StateTest : public TinyRunTest {
 protected:
  Config bf16_config(const std::string& out) const {
    Config bf16 = config(out);
    bf16.optimizer.state = StateDtype::kBf16;
    return bf16;
  }
};

TEST_F(Bf16StateTest, AStoppedRunHasTheBitsOfOneThatWasNot) {
  const Config whole = bf16_config("whole"), stopped = bf16_config("stopped"),
               fp32 = config("fp32");
  EXPECT_TRUE(train(whole).finished && train_with_stops(stopped, {3, 8}).finished);
  EXPECT_TRUE(train(fp32).finished);
  EXPECT_EQ(losses_of(stopped.train.out), losses_of(whole.train.out));
  EXPECT_NE(losses_of(fp32.train.out), losses_of(whole.train.out));
  const auto tensors = tensors_of(whole.train.out);
  EXPECT_EQ(tensors_of(stopped.train.out), tensors);
  for (const char* name : {"m.head", "v.head"}) {
    EXPECT_EQ(2 * tensors.at(name).size(), tensors_of(fp32.train.out).at(name).size()) << name;
  }
}

TEST_F(Bf16StateTest, AStateOfTheOtherFormatIsConverted) {
  const Config fp32 = config("fp32");
  train(fp32);
  Config changing = config("changing");
  const auto train_until = [&](int64_t step, StateDtype state) {
    changing.optimizer.state = state;
    RunOptions options = quiet_options();
    options.on_step = stop_after(step, SIGTERM);
    EXPECT_EQ(train(changing, options).step, step);
    request_stop(0);
    const Checkpoint checkpoint = load_checkpoint(resolve_checkpoint(changing.train.out));
    EXPECT_EQ(checkpoint.optimizer->tensors().at("v.head").type,
              state == StateDtype::kBf16 ? ElementType::kBf16 : ElementType::kF32);
  };
  train_until(4, StateDtype::kFp32);
  train_until(8, StateDtype::kBf16);
  changing.optimizer.state = StateDtype::kFp32;
  EXPECT_TRUE(train(changing).finished);
  const std::vector<double> wanted = losses_of(fp32.train.out),
                            found = losses_of(changing.train.out);
  ASSERT_EQ(found.size(), wanted.size());
  EXPECT_EQ(found[3], wanted[3]);
  EXPECT_NE(found[8], wanted[8]);
  EXPECT_NEAR(found.back(), wanted.back(), 0.01 * wanted.back());
}

}  // namespace
}  // namespace stablemask::testing
