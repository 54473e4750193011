#include "src/commands/result_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "tests/io/scratch.h"

/// Files of results that an interrupted run leaves and the next one completes.
namespace stablemask::commands {
namespace {

const RunFacts kFacts = {{"temperature", "0.8"}, {"--n", "1"}};

std::vector<ResultInput> inputs(size_t count) {
  std::vector<ResultInput> inputs;
  for (size_t i = 0; i < count; ++i) {
    inputs.push_back(
        {std::string(16, static_cast<char>('a' + i)), "in.jsonl: line " + std::to_string(i + 1)});
  }
  return inputs;
}
std::string result(size_t i) { return "{\"text\":\"" + std::string(i, 'x') + "\"}"; }

class ResultFileTest : public ::testing::Test {
 protected:
  /// The message of the refusal.
  std::string refusal(const RunFacts& facts, const std::vector<ResultInput>& given) const {
    try {
      const ResultFile file(out_, facts, given);
      ADD_FAILURE() << "accepted";
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  }
  void finish(ResultFile& file, size_t count) const {
    for (size_t i = file.complete(); i < count; ++i) file.write(result(i));
    file.commit();
  }
  /// What a run leaves that is killed after `count` results.
  std::string interrupted(size_t count) const {
    std::filesystem::remove(out_ + ".partial");
    ResultFile file(out_, kFacts, inputs(4));
    for (size_t i = 0; i < count; ++i) file.write(result(i));
    return read_bytes(out_ + ".partial");
  }

  const Scratch folder_;
  const std::string out_ = folder_ / "out.jsonl";
  const std::string whole_ =
      result(0) + "\n" + result(1) + "\n" + result(2) + "\n" + result(3) + "\n";
};

TEST_F(ResultFileTest, WhateverTheLengthOfWhatIsLeftTheNextRunCompletesIt) {
  const std::string left = interrupted(4);
  size_t least = 4, most = 0;
  for (size_t size = 0; size <= left.size(); ++size) {
    write_bytes(out_ + ".partial", left.substr(0, size));
    ResultFile file(out_, kFacts, inputs(4));
    const auto lines = static_cast<size_t>(
        std::count(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(size), '\n'));
    EXPECT_EQ(file.complete(), lines == 0 ? 0 : lines - 1) << size;
    least = std::min(least, file.complete());
    most = std::max(most, file.complete());
    finish(file, 4);
    EXPECT_EQ(read_bytes(out_), whole_) << size;
    EXPECT_FALSE(std::filesystem::exists(out_ + ".partial"));
    std::filesystem::remove(out_);
  }
  EXPECT_EQ(least, 0U);
  EXPECT_EQ(most, 4U);
}

/// A power failure may leave anything in what was written last.
TEST_F(ResultFileTest, AnEndThatIsNoResultIsMadeAnew) {
  for (const std::string& end : {std::string(40, '\0'), std::string(40, '\0') + "\n",
                                 std::string("cccccccccccccccc {\"text\":\n"),
                                 std::string("cccccccccccccccc\n"), std::string("\n\n")}) {
    write_bytes(out_ + ".partial", interrupted(2) + end);
    ResultFile file(out_, kFacts, inputs(4));
    EXPECT_EQ(file.complete(), 2U);
    finish(file, 4);
    EXPECT_EQ(read_bytes(out_), whole_);
  }
}

TEST_F(ResultFileTest, NothingButPartialIsThereBeforeTheEnd) {
  {
    ResultFile file(out_, kFacts, inputs(4));
    file.write(result(0));
    EXPECT_FALSE(std::filesystem::exists(out_));
    EXPECT_NE(read_bytes(out_ + ".partial").find(result(0) + "\n"), std::string::npos);
  }
  EXPECT_TRUE(std::filesystem::exists(out_ + ".partial"));
  std::filesystem::remove(out_ + ".partial");
  { const ResultFile without_a_result(out_, kFacts, inputs(4)); }
  EXPECT_FALSE(std::filesystem::exists(out_ + ".partial"));
}

TEST_F(ResultFileTest, OtherFactsAndInputsAreRefusedByName) {
  const std::string left = interrupted(2);
  const std::string partial = out_ + ".partial";
  const std::string remedy = "; call the command as it was, or remove the file to begin anew";
  EXPECT_EQ(refusal({{"temperature", "1.0"}, {"--n", "1"}}, inputs(4)),
            partial + ": was begun with temperature 0.8, now it is 1.0" + remedy);
  std::vector<ResultInput> changed = inputs(4);
  changed[1].hash = std::string(16, 'z');
  EXPECT_EQ(refusal(kFacts, changed),
            "in.jsonl: line 2 is not what " + partial + " was begun with" + remedy);
  EXPECT_EQ(refusal(kFacts, inputs(1)),
            partial + ": has results of more prompts than there are now" + remedy);
  EXPECT_EQ(read_bytes(partial), left) << "a refusal changed the file";
  // Inputs whose results are not there yet may change.
  changed = inputs(5);
  changed[2].hash = std::string(16, 'z');
  EXPECT_EQ(ResultFile(out_, kFacts, changed).complete(), 2U);
  // Without a result nothing is lost.
  write_bytes(partial, left.substr(0, left.find('\n') + 1));
  EXPECT_EQ(ResultFile(out_, {{"temperature", "1.0"}}, inputs(4)).complete(), 0U);
}

TEST_F(ResultFileTest, AFileOfSomethingElseIsRefusedAndKept) {
  write_bytes(out_ + ".partial", "mine");
  EXPECT_NE(refusal(kFacts, inputs(4)).find("is not a file of results that this command began"),
            std::string::npos);
  EXPECT_EQ(read_bytes(out_ + ".partial"), "mine");
}

TEST_F(ResultFileTest, OneProcessAtATimeWritesIt) {
  ResultFile first(out_, kFacts, inputs(4));
  EXPECT_NE(refusal(kFacts, inputs(4)).find("another process is writing it"), std::string::npos);
  finish(first, 4);
  EXPECT_EQ(read_bytes(out_), whole_);
}

}  // namespace
}  // namespace stablemask::commands
