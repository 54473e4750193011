#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "src/serve/completion_text.h"
#include "stablemask/base/utf8.h"

namespace stablemask::serve {
namespace {

/// Its ids 3 to 258 are the 256 bytes.
const Tokenizer& tokenizer() {
  static const Tokenizer loaded =
      Tokenizer::load(STABLEMASK_SOURCE_DIR "/tests/fixtures/checkpoint-v0/tokenizer.model");
  return loaded;
}

std::vector<Draw> bytes(const std::string& text) {
  std::vector<Draw> draws;
  for (const char c : text) {
    draws.push_back({3 + static_cast<int32_t>(static_cast<unsigned char>(c)), -0.25f, {}});
  }
  return draws;
}

/// The pieces of the text as they become certain.
std::vector<std::string> pieces(CompletionText& text, const std::vector<Draw>& draws) {
  std::vector<std::string> pieces;
  for (const Draw& draw : draws) {
    const bool goes_on = text.add(draw);
    pieces.push_back(text.take_text());
    if (!goes_on) break;
  }
  text.finish();
  pieces.push_back(text.take_text());
  return pieces;
}

std::string joined(const std::vector<std::string>& pieces) {
  return std::accumulate(pieces.begin(), pieces.end(), std::string());
}

TEST(CompletionText, DividesNoCharacterAndReplacesWhatIsNone) {
  const std::string text = "a\u00E9\u6CB3\U0001F642";
  CompletionText whole(tokenizer(), {});
  for (const std::string& piece : pieces(whole, bytes(text))) EXPECT_TRUE(is_utf8(piece)) << piece;
  CompletionText again(tokenizer(), {});
  EXPECT_EQ(joined(pieces(again, bytes(text))), text);
  EXPECT_EQ(again.tokens(), 10);

  CompletionText broken(tokenizer(), {});
  EXPECT_EQ(joined(pieces(broken, bytes("a\xFF\xC3z\xE6\xB2"))), "a\uFFFD\uFFFDz\uFFFD\uFFFD");
}

TEST(CompletionText, EndsBeforeAStopString) {
  CompletionText text(tokenizer(), {.stop = {"\u00E9n", "zz"}});
  EXPECT_EQ(joined(pieces(text, bytes("caf\u00E9 \u00E9nd"))), "caf\u00E9 ");
  EXPECT_EQ(text.tokens(), 9);
}

TEST(CompletionText, LeavesOutTheHeldEndOfThePrompt) {
  CompletionText text(tokenizer(), {.stop = {}, .held = "ri"});
  EXPECT_EQ(joined(pieces(text, bytes("river"))), "ver");
}

TEST(CompletionText, TokensComeWithTheTextThatTheyBeginIn) {
  CompletionText text(tokenizer(), {.stop = {"END"}, .held = "", .entries = true, .offset = 10});
  std::vector<TokenEntry> all;
  std::string shown;
  for (Draw& draw : bytes("\u00E9xE\u00E9END")) {
    draw.top = {{'b' + 3, -1.0f}, {'c' + 3, -2.0f}};
    text.add(draw);
    shown += text.take_text();
    for (TokenEntry& entry : text.take_entries()) {
      EXPECT_LT(entry.offset, 10 + characters(shown)) << entry.text;
      all.push_back(entry);
    }
  }
  text.finish();
  EXPECT_EQ(shown, "\u00E9xE\u00E9");
  EXPECT_TRUE(text.take_entries().empty()) << "tokens of the stop string";
  std::vector<std::string> texts;
  std::vector<int64_t> offsets;
  for (const TokenEntry& entry : all) {
    texts.push_back(entry.text), offsets.push_back(entry.offset);
    ASSERT_EQ(entry.top.size(), 3U);
    EXPECT_EQ(entry.top[0], (std::pair<std::string, float>("b", -1.0f)));
    EXPECT_EQ(entry.top[2], (std::pair<std::string, float>(entry.text, -0.25f)));
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"bytes:\\xc3", "bytes:\\xa9", "x", "E", "bytes:\\xc3",
                                             "bytes:\\xa9"}));
  EXPECT_EQ(offsets, (std::vector<int64_t>{10, 10, 11, 12, 13, 13}));
}

}  // namespace
}  // namespace stablemask::serve
