#include "stablemask/base/utf8.h"

#include <gtest/gtest.h>

#include <string>

#include "stablemask/base/text.h"

namespace stablemask {
namespace {

constexpr size_t kValid = std::string_view::npos;

// U+00E9, U+2581, U+1F30A; first and last characters of each length.
const std::string kCharacters[] = {"a",          "\x7F",       "\u0080",    "\u00E9", "\u07FF",
                                   "\u0800",     "\u2581",     "\uD7FF",    "\uE000", "\uFFFF",
                                   "\U00010000", "\U0001F30A", "\U0010FFFF"};

TEST(Utf8, CharactersAreValidAndTheirPrefixesUnfinished) {
  for (const std::string& character : kCharacters) {
    EXPECT_EQ(find_invalid_utf8(character), kValid) << character;
    EXPECT_EQ(utf8_character_size(character + "x"), character.size()) << character;
    EXPECT_EQ(utf8_unfinished_size("x" + character), 0U) << character;
    for (size_t size = 1; size < character.size(); ++size) {
      const std::string prefix = character.substr(0, size);
      EXPECT_EQ(find_invalid_utf8("x" + prefix), 1U) << character;
      EXPECT_EQ(utf8_character_size(prefix), 0U) << character;
      EXPECT_EQ(utf8_unfinished_size(prefix), size) << character;
      EXPECT_EQ(utf8_unfinished_size("\u00E9" + prefix), size) << character;
    }
  }
}

TEST(Utf8, BytesThatNoCharacterHasAreInvalidAndNotUnfinished) {
  for (const std::string& bytes :
       {std::string("\x80"), std::string("\xC0"), std::string("\xC1\xBF"), std::string("\xE0\x9F"),
        std::string("\xED\xA0"), std::string("\xF0\x8F\xBF"), std::string("\xF4\x90"),
        std::string("\xF5"), std::string("\xFF"), std::string("\xE2\x81\x81\x81"),
        std::string("\xC3\xA9\xA9")}) {
    EXPECT_NE(find_invalid_utf8(bytes), kValid) << bytes;
    EXPECT_EQ(utf8_unfinished_size(bytes), 0U) << bytes;
  }
  EXPECT_EQ(utf8_unfinished_size(""), 0U);
  EXPECT_EQ(utf8_unfinished_size("\x80\x80\x80\x80"), 0U);
}

// Two bytes after each other, all of them, against the definition: some third and fourth byte make
// it a character.
TEST(Utf8, UnfinishedIsWhatFurtherBytesComplete) {
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      const std::string bytes = {static_cast<char>(first), static_cast<char>(second)};
      bool completes = false;
      for (const char* rest : {"\x80", "\x80\x80"}) {
        completes = completes || utf8_character_size(bytes + rest) > 2;
      }
      const bool second_alone = second >= 0xC2 && second <= 0xF4;
      const size_t expected = completes ? 2 : second_alone ? 1 : 0;
      ASSERT_EQ(utf8_unfinished_size(bytes), expected) << first << " " << second;
    }
  }
}

TEST(Utf8, ReplacementsForBytesThatAreNoCharacters) {
  EXPECT_EQ(with_replacements("a \u00E9 \u6F22 \U0001F600\n"), "a \u00E9 \u6F22 \U0001F600\n");
  EXPECT_EQ(with_replacements("\xE6\xBC"
                              "a\xFF\xC3\xA9\xC3"),
            "\uFFFD\uFFFD"
            "a\uFFFD\u00E9\uFFFD");
  EXPECT_EQ(with_replacements(""), "");
}

// A name from a file must not reach the terminal as a command.
TEST(Utf8, QuotesHaveNothingThatATerminalObeys) {
  EXPECT_EQ(in_quotes("\x1B[31m\x7F\n"), R"("\u001b[31m\u007f\n")");
  EXPECT_EQ(in_quotes("\u0080\u009B\u009F\u00A0"), "\"\\u0080\\u009b\\u009f\u00A0\"");
  EXPECT_EQ(in_quotes("\u200F\u202Eexe\u2066"), R"("\u200f\u202eexe\u2066")");
  EXPECT_EQ(in_quotes("\u00E9\u2581\u2030\U0001F30A"), "\"\u00E9\u2581\u2030\U0001F30A\"");
  EXPECT_EQ(in_quotes("\xC2"), "\"\uFFFD\"");
  for (const char* text : {"\x7F", "a\n", "\u009B1m", "\u202E"})
    EXPECT_TRUE(has_controls(text)) << text;
  for (const char* text : {"", "a b", "\u00A0\u00E9", "\u2581", "\U0001F30A", "\xFF"}) {
    EXPECT_FALSE(has_controls(text)) << text;
  }
}

}  // namespace
}  // namespace stablemask
