#include "src/data/word_encoder.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "stablemask/base/random.h"
#include "tests/data/fixtures.h"
#include "tests/data/hard_models.h"

namespace stablemask {
namespace {

using test::hard_models;
using test::HardModel;
using test::random_text;

/// The ids of the library, of the whole line.
class LibraryEncoder {
 public:
  explicit LibraryEncoder(const std::string& model) {
    EXPECT_TRUE(library_.LoadFromSerializedProto(model).ok());
  }
  std::vector<int32_t> encode(std::string_view text) const {
    std::vector<int> ids;
    EXPECT_TRUE(library_.Encode(text, &ids).ok());
    return {ids.begin(), ids.end()};
  }

 private:
  sentencepiece::SentencePieceProcessor library_;
};

/// The model with the scores that `change` makes of those of its normal pieces.
std::string with_scores(std::string model, const std::function<float(float)>& change) {
  for (const auto& piece : read_sentencepiece_model(model, "model").pieces) {
    if (piece.type != SentencePieceModel::PieceType::kNormal) continue;
    // The text, then the score, a field of number 2 and 32 bits.
    const size_t at = model.find(piece.text + '\x15');
    if (at == std::string::npos) continue;
    const float score = change(piece.score);
    std::memcpy(&model[at + piece.text.size() + 1], &score, sizeof(score));
  }
  return model;
}

const HardModel& words_model() {
  static const HardModel model = {"words", {"a", "b", " a", " b"}, ""};
  return model;
}

std::vector<std::string> spaced(std::vector<std::string> alphabet) {
  for (const char* part : {" ", " ", "  ", "<unk>", "\xE2\x96\x81", "\U0001F30A", "\u00A0"}) {
    alphabet.emplace_back(part);
  }
  alphabet.emplace_back(1, '\0');
  return alphabet;
}

TEST(LineEncoder, GivesTheIdsOfEncodeLine) {
  const auto compare = [](const HardModel& one, const std::string& model) {
    const Tokenizer tokenizer = Tokenizer::from_bytes(model, one.name);
    ASSERT_EQ(tokenizer.loss(), "");
    LineEncoder lines(tokenizer);
    SplitMix64 random(5);
    for (int round = 0; round < 40; ++round) {
      const std::string text = random_text(random, spaced(one.alphabet), random.below(300));
      std::vector<int32_t> wanted = {7};
      std::vector<int32_t> ids = {7};
      tokenizer.encode_line(text, wanted);
      lines.append(text, ids);
      ASSERT_EQ(ids, wanted) << one.name << ": " << text;
    }
  };
  for (const char* type : {"bpe", "unigram"}) {
    compare(words_model(), words_model().train(type, /*inner_spaces=*/false));
    for (const size_t k : {3, 4}) compare(hard_models()[k], hard_models()[k].train(type));
  }
}

// Many segmentations of a word score the same, or almost: which of them the library takes depends
// on how the sum before the word is rounded.
TEST(LineEncoder, FollowsTheRoundingOfUnigramSums) {
  const HardModel& letters = words_model();
  const std::string model = letters.train("unigram", /*inner_spaces=*/false);
  SplitMix64 random(8);
  const std::vector<std::function<float(float)>> kChanges = {
      [](float score) { return std::round(score * 10) / 10; },
      [](float score) { return std::round(score) - 0.1F; },
      [](float) { return -0.7F; },
      [&](float) { return -1.1F - 3e-5F * static_cast<float>(random.below(3)); },
      [](float score) { return score * 1e6F; },
      [](float score) { return -score / 3; },
  };
  int differ = 0;
  for (size_t k = 0; k < kChanges.size(); ++k) {
    const std::string changed = with_scores(model, kChanges[k]);
    const LibraryEncoder library(changed);
    const Tokenizer tokenizer = Tokenizer::from_bytes(changed, "model");
    LineEncoder lines(tokenizer);
    for (int round = 0; round < 15; ++round) {
      std::string text;
      while (text.size() < 3000) {
        text += random_text(random, letters.alphabet, 1 + random.below(8));
      }
      std::vector<int32_t> ids;
      lines.append(text, ids);
      const std::vector<int32_t> wanted = library.encode(text);
      ASSERT_EQ(ids, wanted) << "change " << k;
      std::vector<int32_t> by_words;
      for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find(' ', at + 1), text.size());
        for (const int32_t id : library.encode(text.substr(at, end - at))) by_words.push_back(id);
        at = end;
      }
      differ += by_words != wanted;
    }
  }
  EXPECT_GT(differ, 15) << "lines that may be encoded word by word prove nothing";
}

TEST(LineEncoder, MostWordsDoNotDependOnTheSumBeforeThem) {
  const std::string model = words_model().train("unigram", /*inner_spaces=*/false);
  const UnigramPieces pieces(read_sentencepiece_model(model, "model"));
  std::vector<int32_t> ids;
  EXPECT_GT(encode_unigram_word(pieces, " abba", ids), 1000);
  EXPECT_EQ(ids, LibraryEncoder(model).encode(" abba"));
  // An unknown character, and ties.
  EXPECT_LT(encode_unigram_word(pieces, " \U0001F30A", ids), 0);
  const std::string equal = with_scores(model, [](float) { return -1.0F; });
  const UnigramPieces ties(read_sentencepiece_model(equal, "model"));
  SplitMix64 random(2);
  int tied = 0;
  for (int k = 0; k < 100; ++k) {
    ids.clear();
    const std::string word = random_text(random, {"a", "b"}, 20);
    if (encode_unigram_word(ties, word, ids) < 0) ++tied;
  }
  EXPECT_GT(tied, 0);
}

TEST(LineEncoder, RefusesWhatEncodeLineRefuses) {
  LineEncoder lines(test::small_tokenizer());
  std::vector<int32_t> ids;
  test::expect_data_error([&] { lines.append("a\xFF", ids); }, "not valid UTF-8 at byte 2 (0xFF)");
  test::expect_data_error([&] { lines.append("a\nb", ids); }, "takes one line");
}

TEST(WordEnds, AreBeforeSpacesThatNoPieceJoins) {
  const auto words = [](const std::vector<std::string>& pieces, std::string_view text) {
    SentencePieceModel model;
    for (const std::string& piece : pieces) model.pieces.push_back({piece});
    const WordEnds ends(model);
    std::vector<std::string> parts;
    while (!text.empty()) {
      parts.emplace_back(text.substr(0, ends.first(text)));
      text.remove_prefix(parts.back().size());
    }
    return parts;
  };
  using Words = std::vector<std::string>;
  const std::string space(SentencePieceModel::kSpaceSymbol);
  EXPECT_EQ(words({"a", space + "b"}, " a  bc d "), (Words{" a", " ", " bc", " d", " "}));
  EXPECT_EQ(words({"a", space + space}, " a  bc d "), (Words{" a", "  bc", " d", " "}));
  EXPECT_EQ(words({"a", "x" + space + "y"}, "ax x b ya"), (Words{"ax x b", " ya"}));
}

TEST(WordCache, ReturnsWhatItWasGiven) {
  WordCache cache;
  SplitMix64 random(1);
  const auto word_of = [](uint64_t number) {
    return std::string(1 + number % 20, 'a') + std::to_string(number * 0x9E3779B97F4A7C15ULL);
  };
  const auto ids_of = [](uint64_t number) {
    return std::vector<int32_t>(1 + number % 4, static_cast<int32_t>(number));
  };
  const auto found = [&](uint64_t number) {
    const WordCache::Entry* entry = cache.find(word_of(number));
    if (entry == nullptr) return false;
    std::vector<int32_t> ids;
    entry->append_to(ids);
    EXPECT_EQ(ids, ids_of(number));
    EXPECT_EQ(entry->reach(), static_cast<float>(number));
    return true;
  };
  constexpr uint64_t kWords = 300'000;  // more than there are places
  int kept = 0;
  for (uint64_t number = 0; number < kWords; ++number) {
    EXPECT_FALSE(cache.find(word_of(number)) != nullptr);
    cache.add(word_of(number), ids_of(number), static_cast<float>(number));
    kept += found(number);
    if (number % 1000 == 0) {
      EXPECT_TRUE(found(0)) << "a word that repeats stays";
    }
  }
  EXPECT_EQ(kept, kWords);
}

TEST(WordCache, KeepsNoLongWords) {
  WordCache cache;
  const std::vector<int32_t> one = {3};
  const std::vector<int32_t> many(15, 3);
  for (size_t bytes = 1; bytes < 100; ++bytes) {
    const std::string word(bytes, 'a');
    cache.add(word, one, 0);
    EXPECT_EQ(cache.find(word) != nullptr, bytes <= WordCache::kLongestWord) << bytes;
  }
  cache.add("b", many, 0);
  EXPECT_EQ(cache.find("b"), nullptr);
}

}  // namespace
}  // namespace stablemask
