#include "src/commands/validators.h"

#include <gtest/gtest.h>

#include <string>

namespace stablemask::commands {
namespace {

/// What is wrong with `text`; "": nothing.
std::string problem(const CLI::Validator& validator, std::string text) { return validator(text); }

TEST(NumberFrom, TakesEveryIntegerOfItsRange) {
  const CLI::Validator small = number_from(-3, 10), large = number_from(0);
  for (const char* text : {"-3", "-1", "0", "7", "10"}) EXPECT_EQ(problem(small, text), "") << text;
  EXPECT_EQ(problem(large, "9223372036854775807"), "");
}

TEST(NumberFrom, RefusesWhatAnInt64DoesNotHoldInsteadOfItsLargestValue) {
  EXPECT_EQ(problem(number_from(0), "9223372036854775808"),
            "must be at most 9223372036854775807, not 9223372036854775808");
  EXPECT_EQ(problem(number_from(0), "-9223372036854775809"),
            "must be an integer at least 0, not \"-9223372036854775809\"");
  EXPECT_EQ(problem(number_from(1, 1 << 24), "99999999999999999999"),
            "must be an integer from 1 to 16777216, not \"99999999999999999999\"");
}

// CLI11 reads 010 as 8 and 0x10 as 16.
TEST(NumberFrom, TakesPlainDecimalDigitsOnly) {
  for (const char* text : {"", " ", "010", "0x10", "1e3", "5.0", "+5", "-0", " 5", "5 ", "1'000",
                           "1_000", "five", "5k"}) {
    EXPECT_EQ(problem(number_from(0, 100000), text),
              "must be an integer from 0 to 100000, not \"" + std::string(text) + "\"");
  }
}

TEST(NumberFrom, OfADoubleTakesFractions) {
  const CLI::Validator megabytes = number_from(0.1, 1000.0);
  for (const char* text : {"0.1", "3", "1e3"}) EXPECT_EQ(problem(megabytes, text), "") << text;
  for (const char* text : {"0.09", "1001", "nan", "inf", "1e999", "x"}) {
    EXPECT_EQ(problem(megabytes, text),
              "must be from 0.1 to 1000, not \"" + std::string(text) + "\"");
  }
}

}  // namespace
}  // namespace stablemask::commands
