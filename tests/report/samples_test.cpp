#include "stablemask/report/samples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "stablemask/report/jsonl.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

TEST(Samples, ControlCharactersBecomeHarmless) {
  EXPECT_EQ(without_control_characters("a\tb\nc"), "a b\nc");
  EXPECT_EQ(without_control_characters("\x1B[31m\r\x7F"), "\uFFFD[31m\uFFFD\uFFFD");
  // U+009B, an escape sequence's start in one character; its neighbours stay.
  EXPECT_EQ(without_control_characters("\u009B2J \u00A0 \u00E9 \u6F22"),
            "\uFFFD2J \u00A0 \u00E9 \u6F22");
}

TEST(Samples, LinesBreakAtSpacesAndKeepTheirEnds) {
  EXPECT_EQ(with_line_breaks("The river of Arn", 9), "The river\nof Arn");
  EXPECT_EQ(with_line_breaks("The river of Arn", 8), "The\nriver of\nArn");
  EXPECT_EQ(with_line_breaks("The river\n\nof Arn", 40), "The river\n\nof Arn");
  EXPECT_EQ(with_line_breaks("abcdefgh", 3), "abc\ndef\ngh");
  EXPECT_EQ(with_line_breaks(" abcdefgh", 4), " abc\ndefg\nh");
  EXPECT_EQ(with_line_breaks("\u6F22\u5B57\u6F22", 5), "\u6F22\u5B57\n\u6F22");
  EXPECT_EQ(with_line_breaks("", 5), "");
}

TEST(Samples, LineBreaksLoseNothing) {
  const std::string text =
      "The river of Arn carries salt , wool and iron to the sea .  Donaudampfschifffahrt \u00E9";
  const auto without_spaces = [](std::string s) {
    std::erase_if(s, [](char c) { return c == ' ' || c == '\n'; });
    return s;
  };
  for (size_t columns = 2; columns < 100; ++columns) {
    const std::string broken = with_line_breaks(text, columns);
    EXPECT_EQ(without_spaces(broken), without_spaces(text)) << columns;
    std::istringstream stream(broken);
    for (std::string line; std::getline(stream, line);) {
      EXPECT_LE(line.size() - (line.ends_with("\u00E9") ? 1 : 0), columns) << line;
    }
  }
}

TEST(Samples, LinesForATerminal) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(sample_lines({500, 2, "The river", " of Arn\ncarries salt"}, 11),
            (Lines{"step 500, sample 2:", "  The river", "  of Arn", "  carries", "  salt"}));
  const Lines cut = sample_lines({1, 1, "a", std::string(100, '\n')}, 79);
  ASSERT_EQ(cut.size(), 10U);
  EXPECT_EQ(cut[1], "  a");
  EXPECT_EQ(cut[9], "  …");
}

TEST(JsonlSamples, KeepsEachSampleOnceAcrossResumes) {
  const Scratch folder;
  const std::string path = folder / "samples.jsonl";
  {
    JsonlSamples log(path);
    log.sync();
    EXPECT_FALSE(std::filesystem::exists(path));
    log.cut_after(0);
    for (const int64_t step : {5, 10}) {
      log.record({});
      log.sample({step, 1, "The \"river\"", " of\nArn"});
      log.sample({step, 2, "", "\u6F22"});
    }
  }
  {
    JsonlSamples log(path);
    log.cut_after(9);
    log.sync();
  }
  EXPECT_EQ(read_bytes(path),
            R"({"step":5,"number":1,"prompt":"The \"river\"","continuation":" of\nArn"})"
            "\n"
            R"({"step":5,"number":2,"prompt":"","continuation":")"
            "\u6F22\"}\n");
}

}  // namespace
}  // namespace stablemask
