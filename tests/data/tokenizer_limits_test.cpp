// Texts and models at the limits of SentencePiece.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "stablemask/base/random.h"
#include "tests/data/fixtures.h"

using namespace std::string_literals;

namespace stablemask {
namespace {

using test::expect_data_error;
using test::small_text;
using test::small_tokenizer;
using test::train_small;

std::string letters(size_t count, uint64_t seed) {
  SplitMix64 random(seed);
  std::string text;
  while (count-- > 0) text += static_cast<char>('a' + random.below(20));
  return text;
}

TEST(TokenizerTraining, CutsWordsThatTheLibraryDoesNotSurvive) {
  // 32,769 characters, the space included, are the longest word that the library takes.
  testing::internal::CaptureStderr();
  train_small("bpe", small_text() + " " + letters(32'768, 1) + " end\n");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  const std::string first = letters(32'768, 1);
  const std::string second = letters(40'000, 2);
  testing::internal::CaptureStderr();
  const Tokenizer whole = train_small("bpe", small_text() + first + second + " end\n");
  EXPECT_EQ(testing::internal::GetCapturedStderr().find(
                "stablemask: warning: words of more than 32768 characters were cut"),
            0U);
  // The same as of words that were cut by hand.
  const std::string by_hand =
      first + "\n" + second.substr(0, 32'768) + "\n" + second.substr(32'768) + " end\n";
  EXPECT_EQ(train_small("bpe", small_text() + by_hand).sha256(), whole.sha256());
  // At 65,600 characters of several bytes, the library failed an assertion.
  std::string rivers;
  for (int64_t i = 0; i < 65'600; ++i) rivers += i * i % 7 < 3 ? "\u6CB3" : "\u5DDD";
  testing::internal::CaptureStderr();
  const Tokenizer tokenizer = train_small("bpe", small_text() + rivers + "\n");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("were cut for the training: 1, the first "),
            std::string::npos);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(rivers)), rivers);
}

TEST(TokenizerTraining, ALongLineTrainsLikeItsWords) {
  std::string line;
  while (line.size() < 1'300'000) line += small_text();
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::string lines = line;  // an end before every hundredth word
  int spaces = 0;
  for (size_t at = 0; (at = lines.find(' ', at)) != lines.npos; at += 2) {
    if (++spaces % 100 == 0) lines.insert(at, 1, '\n');
  }
  EXPECT_EQ(train_small("bpe", line).sha256(), train_small("bpe", lines).sha256());
}

TEST(TokenizerTraining, ATextWithoutSpacesGetsALosslessTokenizer) {
  std::string text;
  for (uint64_t k = 0; k < 300; ++k) text += letters(60, k) + "\n";
  for (const char* type : {"bpe", "unigram"}) {
    const Tokenizer tokenizer = train_small(type, text);
    for (const std::string& any : {" "s, "  a b  \n \n"s, "\u2581 \u2581a\u2581"s, "<unk> <unk>\n"s,
                                   "caf\u00E9 \u6CB3"s, "\0 "s}) {
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(any)), any) << type;
    }
    const std::vector<int32_t> ids = tokenizer.encode("abc def");
    EXPECT_EQ(std::count_if(ids.begin(), ids.end(),
                            [&](int32_t id) { return tokenizer.text_of(id) == " "; }),
              1);
  }
}

TEST(TokenizerTraining, WarnsOfJsonLines) {
  testing::internal::CaptureStderr();
  train_small("bpe", "{\"text\": \"a\"}\n" + small_text());
  EXPECT_NE(testing::internal::GetCapturedStderr().find("looks like JSONL, but a tokenizer"),
            std::string::npos);
}

/// A model with one more piece, of which the score and the type may be left out.
std::string with_piece(const std::string& text, const std::string& score = "",
                       const std::string& type = "") {
  const auto field = [](char key, const std::string& bytes) {
    return std::string{key, static_cast<char>(bytes.size())} + bytes;
  };
  const std::string piece = field('\x0A', text) + (score.empty() ? "" : "\x15" + score) +
                            (type.empty() ? "" : "\x18" + type);
  return small_tokenizer().bytes() + field('\x0A', piece);
}

TEST(TokenizerModel, RefusesPiecesThatTheLibraryCannotHold) {
  const auto refused = [](const std::string& model, const std::string& complaint) {
    expect_data_error([&] { Tokenizer::from_bytes(model, "its.model"); }, complaint);
  };
  EXPECT_EQ(Tokenizer::from_bytes(with_piece("zzz"), "its.model").vocab_size(), 341);
  refused(with_piece("a\0b"s), "its.model: piece 340, \"a\\u0000b\", has a NUL character");
  refused(with_piece("\0"s), "piece 340, \"\\u0000\", has a NUL character");
  EXPECT_EQ(Tokenizer::from_bytes(with_piece("zz\n"), "its.model").loss(),
            "a line end is in one of its pieces");
  refused(with_piece("zz\xFF"), "piece 340, \"zz\uFFFD\", is not valid UTF-8");
  refused(with_piece("<unk>"), "are the same, \"<unk>\"");
  refused(with_piece("zzz", "\0\0\xC0\x7F"s),
          "piece 340, \"zzz\", has a score that is not a number");
  const std::string control = "\x03";
  refused(with_piece("\u6CB3", "", control),
          "piece 340, \"\u6CB3\", is a control piece, so a text");
  const Tokenizer longer = Tokenizer::from_bytes(with_piece("zz", "", control), "its.model");
  EXPECT_EQ(longer.decode(longer.encode("zz")), "zz") << "no merge ends in a control piece";
}

}  // namespace
}  // namespace stablemask
