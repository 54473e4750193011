#include "stablemask/data/tokenizer.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <unordered_map>

#include "src/data/round_trip.h"
#include "stablemask/base/random.h"
#include "stablemask/base/utf8.h"
#include "tests/data/fixtures.h"
#include "tests/data/foreign_model.h"

using namespace std::string_literals;

namespace stablemask {
namespace {

using test::expect_data_error;
using test::model_of_library;
using test::SentencePieceFlags;
using test::small_text;
using test::small_tokenizer;
using test::train_small;

const std::vector<std::string>& nasty_texts() {
  static const std::vector<std::string> kTexts = {
      "",
      " ",
      "  ",
      "\n",
      "\n\n \n",
      " \n = River = \n \n",
      "no line end",
      "a  b   c    ",
      "    four before",
      "\t tab\t\ttab",
      "carriage return\r\n\r\n",
      "\0"s,
      "a\0b \0\0 c\n"s,
      "\x01\x02\x7F control",
      "\u2581",                        // SentencePiece's space
      "a\u2581b \u2581 \u2581\u2581",  //
      "\u2585 its unknown",            //
      "<unk>",
      "<unk><unk> <unk>\n<unk>",
      "< unk > <unk <UNK> <unk>> <<unk>",
      "<|unknown|> <s> </s> <pad>",
      "<0x41><0x0A> <0x00>",
      "caf\u00E9 cafe\u0301",        // composed and not
      "\uFB01 \u2460 \uFF21\uFF22",  // what NFKC would change
      "\u00A0\u3000\u2003\u200B\uFEFF",
      "\uFEFF byte order mark",
      "\u2028\u2029\u0085",
      "\u0627\u0644\u0646\u0647\u0631 \u05E0\u05D4\u05E8 \u6CB3\u5DDD",
      "\U0001F469\u200D\U0001F52C\U0001F1E9\U0001F1EA",
      "\U0010FFFF\uFFFD\uFFFF\uD7FF\uE000",
      "1 @,@ 234 @.@ 5 @-@ x",
      std::string(20000, 'a') + " " + std::string(5000, ' ') + "\n",
  };
  return kTexts;
}

class RoundTrip : public testing::TestWithParam<const char*> {};

TEST_P(RoundTrip, NastyTextsComeBackByteForByte) {
  const Tokenizer tokenizer = train_small(GetParam(), small_text());
  for (const std::string& text : nasty_texts()) {
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST_P(RoundTrip, RandomTextsComeBackByteForByte) {
  static const std::vector<std::string> kPieces = {
      " ",   "  ",     "\n",     "<unk>",  "<",      "unk>",   "\u2581", "a",          "the",
      " ri", "\u00E9", "\u0301", "\u6CB3", "\u2028", "\0"s,    "</s>",   "\U0001F30A", "<0x20>",
      ".",   "river",  "\t",     "\uFEFF", "\u00AD", "\u1E9E", "@-@",    "\u200F",     "number "};
  const Tokenizer tokenizer = train_small(GetParam(), small_text());
  SplitMix64 random(7);
  for (int round = 0; round < 1000; ++round) {
    std::string text;
    for (uint64_t n = random.below(40); n > 0; --n) text += kPieces[random.below(kPieces.size())];
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << "round " << round;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, RoundTrip, testing::Values("bpe", "unigram"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Tokenizer, TextUnkIsOnePieceAndNotTheUnknownPiece) {
  const Tokenizer& tokenizer = small_tokenizer();
  const std::vector<int32_t> ids = tokenizer.encode(" a <unk> b<unk><unk> \u6CB3 <unk >");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer.unk_text_id()), 3);
  EXPECT_EQ(tokenizer.decode({tokenizer.unk_text_id()}), "<unk>");
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.LoadFromSerializedProto(tokenizer.bytes()).ok());
  EXPECT_NE(processor.unk_id(), tokenizer.unk_text_id());
  EXPECT_EQ(std::count(ids.begin(), ids.end(), processor.unk_id()), 0) << "byte fallback";
}

TEST(Tokenizer, EveryLineEndIsOneEos) {
  const Tokenizer& tokenizer = small_tokenizer();
  const int32_t eos = tokenizer.eos_id();
  EXPECT_EQ(tokenizer.encode("\n"), std::vector<int32_t>{eos});
  EXPECT_EQ(tokenizer.encode("\n\n\n"), (std::vector<int32_t>{eos, eos, eos}));
  const std::string text = " \n = Town = \n \n The river \n\n last";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), eos), 5);
  EXPECT_NE(ids.back(), eos);
  EXPECT_EQ(tokenizer.decode({eos}), "\n");
}

TEST(Tokenizer, SegmentsLikeTheLibrary) {
  const Tokenizer& tokenizer = small_tokenizer();
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.LoadFromSerializedProto(tokenizer.bytes()).ok());
  for (const char* line :
       {" The river number 37 , called <unk> , reaches", "caf\u00E9 thaw  .", " , x"}) {
    std::vector<int32_t> ids;
    tokenizer.encode_line(line, ids);
    std::vector<int> expected;
    ASSERT_TRUE(processor.Encode(line, &expected).ok());
    EXPECT_EQ(ids, std::vector<int32_t>(expected.begin(), expected.end()));
    EXPECT_LT(ids.size(), std::string(line).size()) << "learnt pieces are in use";
  }
}

TEST(Tokenizer, EncodeLineRefusesLineEndsAndInvalidUtf8) {
  const Tokenizer& tokenizer = small_tokenizer();
  std::vector<int32_t> ids;
  expect_data_error([&] { tokenizer.encode_line("a\nb", ids); }, "one line");
  for (const char* bad :
       {"ab\xFF", "ab\xC0\x80", "ab\xED\xA0\x80", "ab\xF4\x90\x80\x80", "ab\xE2\x96"}) {
    expect_data_error([&] { tokenizer.encode_line(bad, ids); }, "not valid UTF-8 at byte 3");
  }
  expect_data_error([&] { tokenizer.encode("fine\nalso fine\nbad \x80\n"); },
                    "line 3: not valid UTF-8 at byte 5 (0x80)");
}

TEST(Tokenizer, DecodeRefusesForeignIds) {
  const Tokenizer& tokenizer = small_tokenizer();
  expect_data_error([&] { tokenizer.decode({-1}); }, "token -1 is not in the vocabulary");
  expect_data_error([&] { tokenizer.decode({tokenizer.vocab_size()}); },
                    "is not in the vocabulary");
}

/// Feeds `ids` to a StreamDecoder; its texts, that of `finish` last.
std::vector<std::string> stream(const std::vector<int32_t>& ids) {
  StreamDecoder decoder(small_tokenizer());
  std::vector<std::string> texts;
  for (const int32_t id : ids) texts.push_back(decoder.push(id));
  texts.push_back(decoder.finish());
  return texts;
}

std::string joined(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += text;
  return all;
}

/// Offsets at which `text` may be divided: those that are not within a well-formed character.
std::set<size_t> character_starts(std::string_view text) {
  std::set<size_t> starts = {0};
  for (size_t at = 0; at < text.size(); starts.insert(at)) {
    at += std::max<size_t>(1, utf8_character_size(text.substr(at)));
  }
  return starts;
}

TEST(StreamDecoder, TextsComeInWholeCharacters) {
  for (const std::string& text : nasty_texts()) {
    const std::vector<std::string> texts = stream(small_tokenizer().encode(text));
    EXPECT_EQ(joined(texts), text);
    EXPECT_EQ(texts.back(), "");
    for (const std::string& part : texts) {
      ASSERT_EQ(find_invalid_utf8(part), std::string_view::npos) << text;
    }
  }
  // Four byte pieces: nothing until the last one.
  EXPECT_EQ(stream(small_tokenizer().encode("\U0001F30A")),
            (std::vector<std::string>{"", "", "", "\U0001F30A", ""}));
  EXPECT_EQ(stream(small_tokenizer().encode(" the"))[0].substr(0, 1), " ");
}

TEST(StreamDecoder, AnyIdsAreDecodedAsAWhole) {
  const Tokenizer& tokenizer = small_tokenizer();
  std::vector<int32_t> byte_ids;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    // Only the text of a byte piece can be one byte of a longer character.
    const std::string& text = tokenizer.text_of(id);
    if (text.size() == 1 && static_cast<unsigned char>(text[0]) >= 0x80) byte_ids.push_back(id);
  }
  SplitMix64 random(11);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> ids;
    for (uint64_t n = random.below(30); n > 0; --n) {
      const bool byte = random.below(4) != 0;
      ids.push_back(byte ? byte_ids[random.below(byte_ids.size())]
                         : static_cast<int32_t>(random.below(tokenizer.vocab_size())));
    }
    const std::vector<std::string> texts = stream(ids);
    ASSERT_EQ(joined(texts), tokenizer.decode(ids)) << "round " << round;
    const std::set<size_t> starts = character_starts(tokenizer.decode(ids));
    size_t at = 0;
    for (const std::string& text : texts) ASSERT_TRUE(starts.count(at += text.size())) << at;
    ASSERT_LT(texts.back().size(), 4U);
  }
  StreamDecoder decoder(tokenizer);
  expect_data_error([&] { decoder.push(tokenizer.vocab_size()); }, "is not in the vocabulary");
}

TEST(Tokenizer, RoundTripDifferenceShowsTheFirstByte) {
  const Tokenizer& tokenizer = small_tokenizer();
  const std::string line = " The river reaches\x01 town";
  std::vector<int32_t> ids;
  tokenizer.encode_line(line, ids);
  EXPECT_EQ(round_trip_difference(tokenizer, line, ids), "");
  // What a tokenizer that drops the first space would do.
  EXPECT_EQ(round_trip_difference(tokenizer, " " + line, ids),
            "the tokenizer does not round-trip at byte 2: \"  The river reaches\\x01 tow\" became "
            "\" The river reaches\\x01 town\"");
  // An excerpt that ends within a character, and a control character of two bytes.
  const std::string accents =
      " \u00E9\u009B\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9";
  ids.clear();
  tokenizer.encode_line(accents, ids);
  const std::string difference = round_trip_difference(tokenizer, " " + accents, ids);
  EXPECT_TRUE(is_utf8(difference)) << difference;
  EXPECT_NE(difference.find("  \u00E9\\xC2\\x9B\u00E9"), std::string::npos) << difference;
}

TEST(TokenizerTraining, SameTextSameModel) {
  const Scratch folder;
  const std::string text = folder / "text";
  write_bytes(text, small_text());
  TokenizerTraining sampled;
  sampled.vocab_size = 320;
  sampled.max_sentences = 150;
  const auto train = [&](const char* name, TokenizerTraining training) {
    Tokenizer::train({text}, folder / name, training);
    return read_bytes(folder / name);
  };
  for (const char* type : {"bpe", "unigram"}) {
    sampled.model_type = type;
    TokenizerTraining whole = sampled;
    whole.max_sentences = 0;
    const std::string first_sampled = train("a", sampled);
    const std::string first_whole = train("b", whole);
    EXPECT_EQ(train("c", sampled), first_sampled);
    EXPECT_EQ(train("d", whole), first_whole);
    EXPECT_NE(first_sampled, first_whole);
  }
}

TEST(TokenizerTraining, ReportsTheLinesThatItReads) {
  const Scratch folder;
  std::string text;
  for (int i = 0; i < 12'345; ++i) text += "one line\n";
  write_bytes(folder / "a", text);
  const std::string second = small_text();
  write_bytes(folder / "b", second);
  const auto more = static_cast<uint64_t>(std::count(second.begin(), second.end(), '\n'));
  TokenizerTraining training;
  training.vocab_size = 320;
  for (const int64_t sampled : {0, 150}) {
    training.max_sentences = sampled;
    std::vector<std::pair<uint64_t, bool>> seen;
    training.progress = [&](uint64_t lines, bool all) { seen.emplace_back(lines, all); };
    Tokenizer::train({folder / "a", folder / "b"}, folder / "model", training);
    ASSERT_EQ(seen.size(), 2u);
    EXPECT_EQ(seen[0], std::make_pair(uint64_t{10'000}, false));
    EXPECT_EQ(seen[1], std::make_pair(uint64_t{12'345} + more, true));
  }
}

TEST(TokenizerTraining, ReadsLinesBeyondTheLibrarysLimit) {
  // One line of 60 KB: SentencePiece would skip it and find nothing to train on.
  std::string line = small_text();
  std::replace(line.begin(), line.end(), '\n', ' ');
  const Tokenizer tokenizer = train_small("bpe", line);
  EXPECT_EQ(tokenizer.vocab_size(), 320);
}

TEST(TokenizerTraining, ErrorsLeaveNothingBehind) {
  const Scratch folder;
  const std::string text = folder / "text";
  write_bytes(text, small_text());
  const std::string empty = folder / "empty";
  write_bytes(empty, "");
  const std::string bad = folder / "bad";
  write_bytes(bad, "good\nba\xFF!\n");
  const size_t files = test::entries_of(folder);
  const auto train = [&](const std::vector<std::string>& paths, TokenizerTraining training) {
    return [=, &folder] { Tokenizer::train(paths, folder / "model", training); };
  };
  TokenizerTraining training;
  training.vocab_size = 320;
  expect_data_error(train({}, training), "give a file");
  expect_data_error(train({empty}, training), "is empty");
  expect_data_error(train({folder / "missing"}, training), "cannot be opened");
  expect_data_error(train({text, bad}, training), "bad: line 2: not valid UTF-8 at byte 3 (0xFF)");
  training.vocab_size = 20000;
  expect_data_error(train({text}, training), "cannot train a tokenizer of 20000 pieces");
  training.vocab_size = 100;
  expect_data_error(train({text}, training), "100 is not within");
  training.vocab_size = 320;
  training.model_type = "word";
  expect_data_error(train({text}, training), "neither bpe nor unigram");
  training.model_type = "bpe";
  training.threads = 0;
  expect_data_error(train({text}, training), "threads");
  expect_data_error([&] { Tokenizer::train({text}, folder / "no/folder/model", {}); },
                    "cannot be created");
  EXPECT_EQ(test::entries_of(folder), files);
}

TEST(TokenizerTraining, TheSizeThatARefusalNamesIsAccepted) {
  const Scratch folder;
  std::string han;
  for (int k = 0; k < 400; ++k) {  // U+4E00 … in UTF-8
    han += {'\xE4', static_cast<char>(0xB8 + k / 64), static_cast<char>(0x80 + k % 64), ' '};
  }
  write_bytes(folder / "small", small_text());
  write_bytes(folder / "han", han + "\n");
  write_bytes(folder / "tiny", "ab ab\n");
  const auto message = [&](const std::string& name, int64_t size) -> std::string {
    TokenizerTraining training;
    training.vocab_size = size;
    try {
      Tokenizer::train({folder / name}, folder / "model", training);
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  };
  for (const auto& [name, size, words] :
       {std::tuple{"small", 20000, "it has at most "},
        std::tuple{"han", 300, "its characters need at least "}}) {
    const std::string refusal = message(name, size);
    const size_t at = refusal.find(words);
    ASSERT_NE(at, std::string::npos) << refusal;
    EXPECT_NE(refusal.find("; set --vocab-size to that or "), std::string::npos) << refusal;
    EXPECT_EQ(message(name, std::stoll(refusal.substr(at + std::string(words).size()))), "");
  }
  const std::string refusal = message("tiny", 300);
  EXPECT_NE(refusal.find("use more text, a tokenizer has at least 300"), std::string::npos)
      << refusal;
}

std::string train_with_library(const SentencePieceFlags& changes) {
  SentencePieceFlags flags = {
      {"model_type", "bpe"},         {"vocab_size", "320"},
      {"add_dummy_prefix", "false"}, {"normalization_rule_name", "identity"},
      {"byte_fallback", "true"},     {"remove_extra_whitespaces", "false"},
      {"unk_piece", "<|unknown|>"},  {"user_defined_symbols", "<unk>"},
      {"minloglevel", "3"},          {"hard_vocab_limit", "false"}};
  for (const auto& [name, value] : changes) flags[name] = value;
  return model_of_library(flags);
}

TEST(Tokenizer, EndOfTextIsAnIdThatNoTextIsEncodedTo) {
  const Tokenizer& tokenizer = small_tokenizer();
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.LoadFromSerializedProto(tokenizer.bytes()).ok());
  EXPECT_EQ(tokenizer.end_of_text_id(), processor.unk_id());
  EXPECT_NE(tokenizer.end_of_text_id(), tokenizer.eos_id());
  EXPECT_EQ(tokenizer.text_of(tokenizer.end_of_text_id()), "");
  for (const std::string& text : nasty_texts()) {
    const std::vector<int32_t> ids = tokenizer.encode(text);
    ASSERT_EQ(std::count(ids.begin(), ids.end(), tokenizer.end_of_text_id()), 0) << text;
  }
}

TEST(Tokenizer, APieceOfThatNameIsEndOfText) {
  for (const auto& [flag, value] : {std::pair{"control_symbols", "<|endoftext|>"},
                                    std::pair{"user_defined_symbols", "<unk>,<|endoftext|>"}}) {
    const std::string model = train_with_library({{flag, value}});
    sentencepiece::SentencePieceProcessor processor;
    ASSERT_TRUE(processor.LoadFromSerializedProto(model).ok());
    const Tokenizer tokenizer = Tokenizer::from_bytes(model, flag);
    EXPECT_EQ(tokenizer.end_of_text_id(), processor.PieceToId("<|endoftext|>"));
    EXPECT_NE(tokenizer.end_of_text_id(), processor.unk_id());
  }
}

TEST(TokenizerModel, SaysWhatAModelDoesNotKeep) {
  EXPECT_EQ(Tokenizer::from_bytes(train_with_library({}), "model").loss(), "");
  const struct {
    const char* flag;
    const char* value;
    const char* loss;
  } kCases[] = {
      {"normalization_rule_name", "nmt_nfkc", "normalises"},
      {"add_dummy_prefix", "true", "adds a space"},
      {"remove_extra_whitespaces", "true", "drops spaces"},
      {"byte_fallback", "false", "byte fallback"},
      {"treat_whitespace_as_suffix", "true", "moves spaces"},
      {"model_type", "char", "neither unigram nor bpe"},
      {"user_defined_symbols", "@-@", "not a user-defined piece"},
  };
  for (const auto& one : kCases) {
    const Tokenizer tokenizer =
        Tokenizer::from_bytes(train_with_library({{one.flag, one.value}}), "its.model");
    EXPECT_FALSE(tokenizer.lossless()) << one.flag;
    EXPECT_NE(tokenizer.loss().find(one.loss), std::string::npos) << tokenizer.loss();
  }
  const std::string message = expect_data_error(
      [&] {
        Tokenizer::from_bytes(train_with_library({{"eos_id", "-1"}}), "its.model");
      },
      "no end-of-text token");
  EXPECT_EQ(message.rfind("its.model", 0), 0U) << message;
}

TEST(TokenizerModel, RefusesWhatIsNoModel) {
  const Scratch folder;
  expect_data_error([&] { Tokenizer::load(folder / "missing"); }, "cannot be opened");
  expect_data_error([&] { Tokenizer::load(folder.path()); }, "is a folder");
  for (const std::string& bytes :
       {""s, "\n"s, "hello, world"s, std::string(1000, '\xFF'), std::string(1000, '\0'),
        small_text(), "\x0A\xFF\xFF\xFF\xFF\x7F"s}) {
    expect_data_error([&] { Tokenizer::from_bytes(bytes, "junk"); }, "junk");
  }
}

TEST(TokenizerModel, TruncatedModelsAreRefused) {
  const std::string model = small_tokenizer().bytes();
  for (size_t size = 0; size < model.size(); size += 37) {
    EXPECT_THROW(Tokenizer::from_bytes(model.substr(0, size), "cut"), DataError) << size;
  }
}

TEST(TokenizerModel, DamagedModelsAreRefusedOrStillLoseNothing) {
  const std::string model = small_tokenizer().bytes();
  const std::string text = " The river number 37 , called <unk> , \u6CB3 caf\u00E9 \n \n";
  int refused = 0;
  for (size_t at = 0; at < model.size(); at += 13) {
    std::string damaged = model;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
    try {
      const Tokenizer tokenizer = Tokenizer::from_bytes(damaged, "damaged");
      const std::string decoded = tokenizer.decode(tokenizer.encode(text));
      EXPECT_TRUE(!tokenizer.lossless() || decoded == text) << "byte " << at;
      EXPECT_NE(tokenizer.sha256(), small_tokenizer().sha256());
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace stablemask
