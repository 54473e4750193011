#include "src/data/long_text.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <unordered_map>

#include "stablemask/base/random.h"
#include "stablemask/base/utf8.h"
#include "tests/data/fixtures.h"
#include "tests/data/hard_models.h"

namespace stablemask {
namespace {

using test::hard_models;
using test::HardModel;
using test::random_text;

struct Encoders {
  explicit Encoders(const std::string& bytes)
      : model(read_sentencepiece_model(bytes, "model")),
        tokenizer(Tokenizer::from_bytes(bytes, "model")),
        unigram(model) {
    EXPECT_TRUE(library.LoadFromSerializedProto(bytes).ok());
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      surfaces.push_back(tokenizer.text_of(id));
    }
  }

  std::vector<int32_t> whole(std::string_view text) const {
    std::vector<int> ids;
    EXPECT_TRUE(library.Encode(text, &ids).ok());
    return {ids.begin(), ids.end()};
  }
  std::vector<int32_t> in_parts(std::string_view text, size_t part_bytes) const {
    std::vector<int32_t> ids;
    if (model.model_type == 1) {
      float score = 0;
      unigram.encode(text, part_bytes, ids, score);
    } else {
      const auto encode = [this](std::string_view part) { return whole(part); };
      encode_bpe_in_parts(text, part_bytes, encode, surfaces, ids);
    }
    return ids;
  }
  /// What cutting a text anywhere gives.
  std::vector<int32_t> cut(std::string_view text, size_t part_bytes) const {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      std::string_view part = text.substr(0, part_bytes);
      part.remove_suffix(utf8_unfinished_size(part));
      for (const int32_t id : whole(part)) ids.push_back(id);
      text.remove_prefix(part.size());
    }
    return ids;
  }

  SentencePieceModel model;
  Tokenizer tokenizer;
  UnigramEncoder unigram;
  sentencepiece::SentencePieceProcessor library;
  std::vector<std::string> surfaces;
};

class LongText : public testing::TestWithParam<const char*> {};

TEST_P(LongText, PartsGiveTheIdsOfTheWhole) {
  for (const HardModel& one : hard_models()) {
    const Encoders encoders(one.train(GetParam()));
    SplitMix64 random(5);
    std::vector<std::string> alphabet = one.alphabet;
    alphabet.emplace_back("\U0001F30A");  // an unknown character
    int cuts_show = 0;
    for (int round = 0; round < 60; ++round) {
      const std::string text =
          random_text(random, round % 2 ? alphabet : one.alphabet, 1 + random.below(2000));
      const size_t part_bytes = 16 + random.below(300);
      const std::vector<int32_t> whole = encoders.whole(text);
      ASSERT_EQ(encoders.in_parts(text, part_bytes), whole)
          << one.name << ", round " << round << ", " << part_bytes << " bytes";
      cuts_show += encoders.cut(text, part_bytes) != whole;
    }
    EXPECT_GT(cuts_show, 20) << one.name << ": a text that may be cut anywhere proves nothing";
  }
}

TEST_P(LongText, AlsoWhereSumsOfScoresAreRounded) {
  const HardModel& genome = hard_models()[2];
  const Encoders encoders(genome.train(GetParam()));
  SplitMix64 random(9);
  const std::string text = random_text(random, genome.alphabet, 400'000);
  EXPECT_EQ(encoders.in_parts(text, 1 << 16), encoders.whole(text));
  const std::string run(300'000, 'A');
  EXPECT_EQ(encoders.in_parts(run, 1 << 16), encoders.whole(run));
}

TEST_P(LongText, TheTokenizerEncodesLongLinesLikeTheLibrary) {
  const Scratch folder;
  TokenizerTraining training;
  training.vocab_size = 320;
  training.model_type = GetParam();
  write_bytes(folder / "text", test::small_text());
  Tokenizer::train({folder / "text"}, folder / "model", training);
  const Encoders encoders(read_bytes(folder / "model"));
  std::string line;
  while (line.size() < 400'000) line += test::small_text();
  std::replace(line.begin(), line.end(), '\n', ' ');
  EXPECT_EQ(encoders.tokenizer.encode(line), encoders.whole(line));
}

INSTANTIATE_TEST_SUITE_P(Types, LongText, testing::Values("bpe", "unigram"),
                         [](const auto& info) { return std::string(info.param); });

// A right neighbour may change tokens far to its left: each merge here takes a letter from the
// merge before it, so the last letter of the text decides all of them.
TEST(LongText, BytePairPartsFollowAChainOfMerges) {
  const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  std::unordered_map<std::string, int32_t> ids;
  std::vector<std::string> surfaces;
  const auto add = [&](const std::string& piece) {
    ids.emplace(piece, static_cast<int32_t>(surfaces.size()));
    surfaces.push_back(piece);
  };
  for (const char letter : letters) add(std::string(1, letter));
  for (size_t k = 0; k + 1 < letters.size(); ++k) add(letters.substr(k, 2));
  // Merges pairs, the one furthest to the right in `letters` first: what SentencePiece does for
  // these pieces.
  const auto encode = [&](std::string_view text) {
    std::vector<std::string> symbols;
    for (const char letter : text) symbols.emplace_back(1, letter);
    for (size_t k = letters.size() - 1; k-- > 0;) {
      for (size_t at = 0; at + 1 < symbols.size(); ++at) {
        if (symbols[at] + symbols[at + 1] != letters.substr(k, 2)) continue;
        symbols[at] += symbols[at + 1];
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
      }
    }
    std::vector<int32_t> result;
    for (const std::string& symbol : symbols) result.push_back(ids.at(symbol));
    return result;
  };
  for (const size_t length : {61, 62}) {
    std::string text = "Z";  // no sum, of which GCC 12 warns wrongly
    text += letters.substr(0, length);
    for (size_t part_bytes = 5; part_bytes < 63; ++part_bytes) {
      std::vector<int32_t> in_parts;
      encode_bpe_in_parts(text, part_bytes, encode, surfaces, in_parts);
      EXPECT_EQ(in_parts, encode(text)) << length << " letters in parts of " << part_bytes;
    }
  }
}

}  // namespace
}  // namespace stablemask
