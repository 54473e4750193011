#include "src/commands/known_command.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "tests/io/scratch.h"

namespace stablemask::commands {
namespace {

/// A program with the commands of stablemask that these tests need.
class KnownCommand : public testing::Test {
 protected:
  KnownCommand() : program_("A program.", "stablemask") {
    CLI::App* tokenizer = program_.add_subcommand("tokenizer", "Train and use a tokenizer");
    for (const char* name : {"train", "encode", "decode"}) tokenizer->add_subcommand(name, "Text");
    CLI::App* data = program_.add_subcommand("data", "Prepare corpora");
    for (const char* name : {"prepare", "inspect"}) data->add_subcommand(name, "Text");
    for (const char* name : {"pretrain", "finetune", "eval"}) program_.add_subcommand(name, "Text");
  }

  std::string refusal(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "stablemask");
    return message_of<ConfigError>([&] {
      require_known_command(program_, static_cast<int>(arguments.size()), arguments.data());
    });
  }

  std::string list(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "stablemask");
    return missing_command_list(program_, static_cast<int>(arguments.size()), arguments.data());
  }

  CLI::App program_;
};

TEST_F(KnownCommand, TakesKnownOnesWithAnyArguments) {
  EXPECT_EQ(refusal({}), "");
  EXPECT_EQ(refusal({"--help"}), "");
  EXPECT_EQ(refusal({"--version", "nonsense"}), "");
  EXPECT_EQ(refusal({"tokenizer"}), "");
  EXPECT_EQ(refusal({"tokenizer", "encode", "nonsense"}), "");
  EXPECT_EQ(refusal({"pretrain", "config.json"}), "");
}

TEST_F(KnownCommand, AWordOfAnotherGroupNamesTheGroup) {
  EXPECT_EQ(
      refusal({"encode"}),
      "unknown command \"encode\"; did you mean \"tokenizer encode\"? (see stablemask --help)");
  EXPECT_EQ(refusal({"tokenizer", "prepare"}),
            "unknown command \"prepare\"; did you mean \"data prepare\"? "
            "(see stablemask tokenizer --help)");
  EXPECT_EQ(refusal({"train", "config.json"}),
            "unknown command \"train\"; did you mean \"tokenizer train\" or \"pretrain\"? "
            "(see stablemask --help)");
}

TEST_F(KnownCommand, ASimilarWordIsSuggested) {
  EXPECT_EQ(refusal({"evl"}),
            "unknown command \"evl\"; did you mean \"eval\"? (see stablemask --help)");
  EXPECT_EQ(refusal({"data", "inspcet"}),
            "unknown command \"inspcet\"; did you mean \"inspect\"? (see stablemask data --help)");
  EXPECT_EQ(refusal({"inspcet"}),
            "unknown command \"inspcet\"; did you mean \"data inspect\"? (see stablemask --help)");
  EXPECT_EQ(
      refusal({"frobnicate"}),
      "unknown command \"frobnicate\"; choose one of tokenizer, data, pretrain, finetune, eval "
      "(see stablemask --help)");
  EXPECT_EQ(refusal({"a\nb"}).find('\n'), std::string::npos);
}

TEST_F(KnownCommand, WithoutACommandTheyAreListed) {
  EXPECT_EQ(list({}),
            "usage: stablemask COMMAND [OPTIONS]\n"
            "  tokenizer    Train and use a tokenizer\n"
            "  data         Prepare corpora\n"
            "  pretrain     Text\n"
            "  finetune     Text\n"
            "  eval         Text\n"
            "stablemask COMMAND --help explains a command\n");
  EXPECT_EQ(list({"data"}),
            "usage: stablemask data COMMAND [OPTIONS]\n"
            "  prepare      Text\n"
            "  inspect      Text\n"
            "stablemask data COMMAND --help explains a command\n");
  for (const std::vector<const char*>& complete : std::vector<std::vector<const char*>>{
           {"--help"}, {"data", "--help"}, {"eval"}, {"data", "prepare"}, {"nonsense"}}) {
    EXPECT_EQ(list(complete), "");
  }
}

TEST(Arguments, OneThatIsNotUtf8IsRefusedWithItsPlace) {
  const auto refusal = [](std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "stablemask");
    return message_of<ConfigError>(
        [&] { require_utf8_arguments(static_cast<int>(arguments.size()), arguments.data()); });
  };
  const std::string remedy = "is not UTF-8; write it as UTF-8, rename a file of such a name";
  EXPECT_EQ(refusal({"eval", "--json", "caf\xE9"}),
            "argument 3, --json \"caf\uFFFD\": byte 4 (0xE9) " + remedy);
  EXPECT_EQ(refusal({"config", "check", "\xFF.json"}),
            "argument 3, \"\uFFFD.json\": byte 1 (0xFF) " + remedy);
  EXPECT_EQ(refusal({"pretrain", "c.json", "--set=train.out=a\xC3"}),
            "argument 3, \"--set=train.out=a\uFFFD\": byte 18 (0xC3) " + remedy);
  EXPECT_EQ(refusal({"generate", "--prompt", "caf\u00E9 \u65E5\u672C \U0001F600"}), "");
  EXPECT_EQ(refusal({}), "");
}

}  // namespace
}  // namespace stablemask::commands
