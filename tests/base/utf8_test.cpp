#include "stablemask/base/utf8.h"

#include <gtest/gtest.h>

#include <string>

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

}  // namespace
}  // namespace stablemask
