#include "src/commands/score_lines.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "tests/data/tiny_corpus.h"

namespace stablemask::commands {
namespace {

std::vector<ScoreLine> read(const std::string& content, const std::string& field = "text") {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "in.jsonl", content);
  ScoreLines lines(folder / "in.jsonl", field);
  std::vector<ScoreLine> all;
  for (ScoreLine line; lines.next(line);) all.push_back(line);
  lines.require_some();
  return all;
}

/// The message of the refusal, after "…in.jsonl: ".
std::string refusal(const std::string& content, const std::string& field = "text") {
  try {
    read(content, field);
  } catch (const DataError& error) {
    const std::string message = error.what(), name = "in.jsonl: ";
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message.substr(message.find(name) + name.size());
  }
  return "none";
}

TEST(ScoreLines, AreTextsAndPairs) {
  const auto lines = read(
      "\xEF\xBB\xBF{\"text\": \"a\\n\", \"id\": [1]}\n\n"
      "{\"context\": \"\", \"x\": null, \"continuation\": \" b\"}");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].number, 1u);
  EXPECT_EQ(lines[0].text, "a\n");
  EXPECT_FALSE(lines[0].context);
  EXPECT_EQ(lines[1].number, 3u);
  EXPECT_EQ(lines[1].text, " b");
  EXPECT_EQ(lines[1].context, "");
  EXPECT_EQ(read("{\"context\": \"a\"}", "context").front().text, "a");
}

TEST(ScoreLines, AreIdsAndPairsOfThem) {
  const auto lines = read(
      "{\"ids\": [3, 0, 7], \"trained\": [[1, 2]]}\n"
      "{\"continuation_ids\": [5], \"context_ids\": []}\n"
      "{\"context_ids\": [4, 2], \"continuation_ids\": [5, 6]}\n"
      "{\"text\": \"a\", \"ids\": \"of another program\"}\n");
  ASSERT_EQ(lines.size(), 4u);
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(lines[0].ids, (Ids{3, 0, 7}));
  EXPECT_FALSE(lines[0].is_pair());
  EXPECT_EQ(lines[1].ids, (Ids{5}));
  EXPECT_EQ(lines[1].context_ids, 0);
  EXPECT_EQ(lines[2].ids, (Ids{4, 2, 5, 6}));
  EXPECT_EQ(lines[2].context_ids, 2);
  EXPECT_TRUE(lines[2].is_pair());
  EXPECT_FALSE(lines[3].has_ids());
  EXPECT_EQ(refusal("{\"ids\": []}"), "line 1: the field \"ids\" is empty: nothing to score");
  EXPECT_EQ(refusal("{\"ids\": [1, -2]}"),
            "line 1: the field \"ids\" is not a list of token ids: it has -2");
  EXPECT_EQ(refusal("{\"ids\": 4}"), "line 1: the field \"ids\" is not a list of token ids");
  EXPECT_EQ(refusal("{\"context_ids\": [1], \"continuation_ids\": []}"),
            "line 1: the field \"continuation_ids\" is empty: nothing to score");
  EXPECT_EQ(refusal("{\"context_ids\": [1]}"),
            "line 1: has no field \"continuation_ids\", which a pair needs beside \"context_ids\"; "
            "it has: \"context_ids\"");
  EXPECT_EQ(refusal("{\"ids\": [1], \"context_ids\": [1]}"),
            "line 1: has the field \"ids\" beside context_ids; leave one of them out");
  EXPECT_EQ(refusal("{\"ids\": [1]}", "ids"), "line 1: the field \"ids\" is not a string");
}

TEST(ScoreLines, RefusalsNameTheLineAndTheRemedy) {
  const std::string good = "{\"text\": \"a\"}\n";
  EXPECT_EQ(refusal(good + "{\"text\": 3}"), "line 2: the field \"text\" is not a string");
  EXPECT_EQ(refusal(good + "[1]\n").substr(0, 38), "line 2: is not a JSON object; write on");
  EXPECT_EQ(refusal("{\"text\": \"a\"").substr(0, 33), "line 1: not valid JSON at column ");
  EXPECT_EQ(refusal("{\"text\": \"\xFF\"}"), "line 1: not valid UTF-8 at byte 11 (0xFF)");
  EXPECT_EQ(refusal("{\"txt\": \"a\", \"b\": 1}"),
            "line 1: has neither the field \"text\" nor the fields \"context\" and "
            "\"continuation\", nor \"ids\" for token ids; it has: \"txt\", \"b\"; choose the one "
            "with the text with --field");
  EXPECT_EQ(refusal("{\"context\": \"a\", \"continuaton\": \"b\"}"),
            "line 1: has no field \"continuation\", which a pair needs beside \"context\"; it has: "
            "\"context\", \"continuaton\"");
  EXPECT_EQ(refusal("{\"continuation\": \"b\"}").substr(0, 33),
            "line 1: has no field \"context\", w");
  EXPECT_EQ(refusal("{\"text\": \"a\", \"context\": \"b\"}"),
            "line 1: has the field \"text\" beside context; a line is a text or a pair, leave one "
            "of them out");
  EXPECT_EQ(refusal("{\"text\": \"\"}"), "line 1: the field \"text\" is empty: nothing to score");
  EXPECT_EQ(refusal("{\"context\": \"a\", \"continuation\": \"\"}"),
            "line 1: the field \"continuation\" is empty: nothing to score");
  EXPECT_EQ(refusal("{\"text\": \"a\", \"text\": \"b\"}").substr(0, 22), "line 1: not valid JSON");
  EXPECT_EQ(refusal(""), "has no line to score");
  EXPECT_EQ(refusal("\n \n"), "has no line to score");
}

TEST(WordCounts, ArePythonsPieces) {
  // pieces: len(re.split(r"\s+", text))
  const auto expect = [](const std::string& text, uint64_t words, uint64_t lines, uint64_t pieces) {
    const WordCounts counts = word_counts(text);
    EXPECT_EQ(counts.words, words) << text;
    EXPECT_EQ(counts.lines, lines) << text;
    EXPECT_EQ(counts.pieces, pieces) << text;
  };
  expect("a", 1, 0, 1);
  expect("a bc", 2, 0, 2);
  expect(" a \t bc\n", 2, 1, 4);
  expect("a\n\nb", 2, 2, 2);
  expect(" ", 0, 0, 2);
}

}  // namespace
}  // namespace stablemask::commands
