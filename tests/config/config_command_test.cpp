#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "src/commands/commands.h"

namespace stablemask {
namespace {

/// What main appends to the message of a refused command line; "parsed" when it is accepted.
std::string hint(std::vector<const char*> arguments) {
  CLI::App program("test", "stablemask");
  std::vector<std::string> overrides;
  std::string config;
  CLI::App* pretrain = program.add_subcommand("pretrain");
  pretrain->add_option("config", config)->required();
  pretrain->add_flag("--quiet");
  commands::add_set_option(*pretrain, overrides);
  program.add_subcommand("bench")->add_option("--context");
  arguments.insert(arguments.begin(), "stablemask");
  const int count = static_cast<int>(arguments.size());
  try {
    program.parse(count, arguments.data());
    return "parsed";
  } catch (const CLI::ParseError&) {
    return commands::set_option_hint(program, count, arguments.data());
  }
}

TEST(SetOptionHint, NamesTheFieldThatAnUnknownOptionMeans) {
  EXPECT_EQ(hint({"pretrain", "c.json", "--steps", "10"}),
            "; to set a config field use --set train.steps=10");
  EXPECT_EQ(hint({"pretrain", "--quiet", "--steps=10", "c.json"}),
            "; to set a config field use --set train.steps=10");
  EXPECT_EQ(hint({"pretrain", "c.json", "--learning-rate", "1e-3"}),
            "; to set a config field use --set optimizer.lr=1e-3");
  EXPECT_EQ(hint({"pretrain", "c.json", "--train.steps", "10"}),
            "; to set a config field use --set train.steps=10");
  EXPECT_EQ(hint({"pretrain", "c.json", "--batch", "8"}),
            "; to set a config field use --set train.batch=8 or --set eval.batch=8");
  EXPECT_EQ(hint({"pretrain", "c.json", "--deterministic"}),
            "; to set a config field use --set train.deterministic=VALUE");
}

TEST(SetOptionHint, IsEmptyForOtherErrors) {
  EXPECT_EQ(hint({"pretrain", "c.json", "--nonsense", "10"}), "");
  EXPECT_EQ(hint({"pretrain"}), "");
  EXPECT_EQ(hint({"bench", "--steps", "10"}), "");  // has no --set
  EXPECT_EQ(hint({"--steps", "10"}), "");
  EXPECT_EQ(hint({"pretrain", "c.json", "--set", "train.steps=10"}), "parsed");
}

}  // namespace
}  // namespace stablemask
