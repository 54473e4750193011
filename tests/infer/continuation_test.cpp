#include "stablemask/infer/continuation.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/random.h"
#include "stablemask/base/utf8.h"
#include "tests/data/tiny_corpus.h"

namespace stablemask::infer {
namespace {

using Texts = std::vector<std::string>;

class ContinuationTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { corpus_ = new testing::TinyCorpus(); }
  static void TearDownTestSuite() { delete corpus_; }

  /// The text of these ids; every piece of it must be whole characters.
  std::string text(const std::vector<int32_t>& ids, const std::string& held, const Texts& stops,
                   bool* stopped = nullptr) const {
    Continuation continuation(tokenizer_, held, stops);
    std::string all;
    const auto take = [&](const std::string& piece) {
      EXPECT_TRUE(is_utf8(piece)) << piece;
      all += piece;
    };
    for (const int32_t id : ids) take(continuation.push(id));
    take(continuation.finish());
    if (stopped != nullptr) *stopped = continuation.stopped();
    return all;
  }

  /// One id for each byte, so that a stop text spans as many tokens as possible.
  std::vector<int32_t> bytes_of(const std::string& text) const {
    std::vector<int32_t> ids;
    for (const char byte : text) {
      for (int32_t id = 0; id < tokenizer_.vocab_size(); ++id) {
        if (tokenizer_.text_of(id) != std::string(1, byte)) continue;
        ids.push_back(id);
        break;
      }
    }
    EXPECT_EQ(ids.size(), text.size());
    return ids;
  }

  static testing::TinyCorpus* corpus_;
  const Tokenizer tokenizer_ = Tokenizer::load(corpus_->tokenizer);
};
testing::TinyCorpus* ContinuationTest::corpus_ = nullptr;

/// By a search in the whole text: the stop text that ends first, of those the longest.
std::string cut(const std::string& text, const Texts& stops, bool* stopped) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    *stopped = longest > 0;
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST_F(ContinuationTest, EqualsASearchInTheWholeText) {
  SplitMix64 random(5);
  const auto word = [&](size_t most) {
    static const char* const kLetters[] = {"a", "b", "\u00E9", "\u00E8", "\n"};
    std::string text;
    for (uint64_t left = 1 + random.below(most); left > 0; --left)
      text += kLetters[random.below(5)];
    return text;
  };
  int ended = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::string whole = word(40);
    Texts stops;
    for (uint64_t count = random.below(4); count > 0; --count) stops.push_back(word(5));
    bool expected = false, stopped = false;
    const std::string until = cut(whole, stops, &expected);
    const auto ids = i % 2 == 0 ? bytes_of(whole) : tokenizer_.encode(whole);
    EXPECT_EQ(text(ids, "", stops, &stopped), until) << whole;
    EXPECT_EQ(stopped, expected);
    ended += stopped ? 1 : 0;
  }
  EXPECT_GT(ended, 500);
  EXPECT_LT(ended, 2500);
}

TEST_F(ContinuationTest, PrintsNothingThatMayBeginAStopText) {
  Continuation continuation(tokenizer_, "", {"town"});
  std::string shown;
  for (const int32_t id : bytes_of("a to")) shown += continuation.push(id);
  EXPECT_EQ(shown, "a ");
  EXPECT_EQ(continuation.push(bytes_of("p")[0]), "top") << "it was another word";
  for (const int32_t id : bytes_of(" townsfolk")) shown += continuation.push(id);
  EXPECT_EQ(shown, "a  ");
  EXPECT_TRUE(continuation.stopped());
  EXPECT_EQ(continuation.finish(), "");
}

TEST_F(ContinuationTest, LeavesOutTheHeldEndOfThePrompt) {
  const auto ids = tokenizer_.encode(" river of \u6CB3");
  EXPECT_EQ(text(ids, " ", {}), "river of \u6CB3");
  EXPECT_EQ(text(ids, " riv", {}), "er of \u6CB3");
  bool stopped = false;
  EXPECT_EQ(text(ids, " riv", {"riv", "of"}, &stopped), "er ");
  EXPECT_TRUE(stopped);
  EXPECT_EQ(text(tokenizer_.encode(" "), " ", {}), "");
}

TEST_F(ContinuationTest, GivesUnfinishedCharactersAtTheEnd) {
  Continuation continuation(tokenizer_, "", {"\u6CB3"});
  const auto ids = bytes_of("\u6CB3");
  EXPECT_EQ(continuation.push(ids[0]), "");
  EXPECT_EQ(continuation.push(ids[1]), "");
  EXPECT_EQ(continuation.finish(), "\xE6\xB2");
  EXPECT_FALSE(continuation.stopped());
}

TEST_F(ContinuationTest, RefusesAnEmptyStopText) {
  EXPECT_THROW(Continuation(tokenizer_, "", {"a", ""}), ConfigError);
}

}  // namespace
}  // namespace stablemask::infer
