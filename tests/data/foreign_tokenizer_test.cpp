#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "stablemask/data/sentencepiece_model.h"
#include "stablemask/data/tokenizer.h"
#include "tests/data/fixtures.h"
#include "tests/data/foreign_model.h"

namespace stablemask {
namespace {

using test::expect_data_error;

using test::foreign_model;
using Flags = test::SentencePieceFlags;

const Flags kLlama = test::llama_flags();

const std::vector<std::string>& foreign_texts() {
  static const std::vector<std::string> kTexts = {
      "",
      " ",
      "   ",
      "\n",
      "The river reaches town",
      " a space before",
      "   three before,  two within,   three behind   ",
      "one\ntwo\n\n four\ta tab",
      "a\nline within [INST] \u2581 <s> </s> <unk>",
      "caf\u00E9 cafe\u0301 \uFB01 \uFF21 \u3000 \u6CB3 \U0001F30A",
  };
  return kTexts;
}

class ForeignModel : public testing::TestWithParam<Flags> {};

TEST_P(ForeignModel, IdsAndTextsAreThoseOfTheLibrary) {
  const std::string model = foreign_model(GetParam());
  const Tokenizer tokenizer = Tokenizer::from_bytes(model, "model");
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.LoadFromSerializedProto(model).ok());
  ASSERT_FALSE(tokenizer.lossless());
  ASSERT_TRUE(tokenizer.can_encode());
  EXPECT_EQ(tokenizer.vocab_size(), processor.GetPieceSize());
  EXPECT_EQ(tokenizer.eos_id(), processor.eos_id());
  EXPECT_EQ(tokenizer.end_of_text_id(), processor.eos_id());
  EXPECT_EQ(tokenizer.start_id(), processor.bos_id());
  for (const std::string& text : foreign_texts()) {
    std::vector<int> expected;
    ASSERT_TRUE(processor.Encode(text, &expected).ok());
    const std::vector<int32_t> ids = tokenizer.encode(text);
    EXPECT_EQ(ids, std::vector<int32_t>(expected.begin(), expected.end())) << text;
    std::string decoded;
    ASSERT_TRUE(processor.Decode(expected, &decoded).ok());
    EXPECT_EQ(tokenizer.decode(ids), decoded) << text;
  }
  EXPECT_EQ(tokenizer.decode({tokenizer.start_id(), tokenizer.eos_id()}), "");
}

INSTANTIATE_TEST_SUITE_P(Kinds, ForeignModel,
                         testing::Values(kLlama, Flags{}, Flags{{"model_type", "unigram"}},
                                         Flags{{"add_dummy_prefix", "false"},
                                               {"byte_fallback", "false"}}));

TEST(ForeignTokenizer, ATextIsEncodedAsAWhole) {
  const Tokenizer tokenizer = Tokenizer::from_bytes(foreign_model(kLlama), "llama.model");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("The river\nand town")), "The river\nand town");
  expect_data_error([&] { tokenizer.encode("bad \x80"); }, "not valid UTF-8");
  expect_data_error([&] { tokenizer.encode(std::string(Tokenizer::kLongestText + 1, 'a')); },
                    "divide it into documents");
}

TEST(ForeignTokenizer, FilesBesideAModelNameItsSpecialTokens) {
  const Scratch folder;
  write_bytes(folder / "tokenizer.model", foreign_model(kLlama));
  const int32_t pieces = Tokenizer::load(folder / "tokenizer.model").vocab_size();
  nlohmann::json config = {{"eos_token", {{"content", "<|im_end|>"}}}, {"bos_token", nullptr}};
  const std::string first = std::to_string(pieces), second = std::to_string(pieces + 1);
  config["added_tokens_decoder"][first] = {{"content", "<|im_end|>"}, {"special", true}};
  config["added_tokens_decoder"][second] = {{"content", "<tool>"}, {"special", false}};
  write_bytes(folder / "tokenizer_config.json", config.dump());
  const Tokenizer tokenizer = Tokenizer::load(folder / "tokenizer.model");
  EXPECT_EQ(tokenizer.vocab_size(), pieces + 2);
  EXPECT_EQ(tokenizer.end_of_text_id(), pieces);
  EXPECT_EQ(tokenizer.decode({pieces, pieces + 1}), "<tool>");
  EXPECT_EQ(tokenizer.companions().at("tokenizer_config.json"), config.dump());
  config["eos_token"] = "<|absent|>";
  write_bytes(folder / "tokenizer_config.json", config.dump());
  expect_data_error([&] { Tokenizer::load(folder / "tokenizer.model"); },
                    "\"<|absent|>\", is not in the vocabulary");
  write_bytes(folder / "tokenizer_config.json", "{");
  expect_data_error([&] { Tokenizer::load(folder / "tokenizer.model"); },
                    "tokenizer_config.json: is not valid JSON");
}

TEST(ForeignTokenizer, DamagedModelsAreRefusedOrStillEncode) {
  for (const Flags& flags : {kLlama, Flags{}}) {
    const std::string model = foreign_model(flags);
    int refused = 0;
    for (size_t at = 0; at < model.size(); at += model.size() / 100) {
      std::string damaged = model;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
      try {
        const Tokenizer tokenizer = Tokenizer::from_bytes(damaged, "damaged");
        for (const std::string& text : foreign_texts()) tokenizer.decode(tokenizer.encode(text));
      } catch (const DataError&) {
        ++refused;
      }
    }
    EXPECT_GT(refused, 0);
  }
}

TEST(ForeignTokenizer, DamagedCharacterMapsAreRefused) {
  const std::string model = foreign_model({});
  const std::string map = read_sentencepiece_model(model, "model").charsmap;
  ASSERT_GT(map.size(), 1000u);
  EXPECT_EQ(charsmap_problem(map), "");
  EXPECT_EQ(charsmap_problem(""), "");
  EXPECT_NE(charsmap_problem(map.substr(0, map.size() - 1) + "x"), "") << "no end of the last text";
  EXPECT_NE(charsmap_problem(map.substr(0, 3)), "");
  EXPECT_NE(charsmap_problem(map.substr(0, map.size() / 2)), "") << "the trie is cut off";
  std::string far = map;
  far[7] = '\x7F';  // the root's children lie beyond the end
  EXPECT_NE(charsmap_problem(far), "");
}

/// A byte-level tokenizer: every byte, two merges, and added tokens.
nlohmann::json byte_level() {
  const auto utf8 = [](int character) {
    if (character < 0x80) return std::string(1, static_cast<char>(character));
    return std::string{static_cast<char>(0xC0 | character >> 6),
                       static_cast<char>(0x80 | (character & 0x3F))};
  };
  nlohmann::json vocab;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    vocab[utf8(prints ? byte : next++)] = byte;
  }
  vocab["he"] = 256;
  vocab["\u0120he"] = 257;
  nlohmann::json json;
  json["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", {{"h", "e"}, "\u0120 he"}}};
  json["decoder"] = {{"type", "ByteLevel"}};
  json["added_tokens"] = {{{"id", 260}, {"content", "<|endoftext|>"}, {"special", true}},
                          {{"id", 261}, {"content", "<tool call>"}, {"special", false}}};
  return json;
}

TEST(TokenizerJson, ByteLevelIdsBecomeText) {
  const Tokenizer tokenizer = Tokenizer::from_bytes(byte_level().dump(), "tokenizer.json");
  EXPECT_FALSE(tokenizer.lossless());
  EXPECT_FALSE(tokenizer.can_encode());
  EXPECT_EQ(tokenizer.vocab_size(), 262);
  EXPECT_EQ(tokenizer.end_of_text_id(), 260);
  EXPECT_EQ(tokenizer.start_id(), 260);
  std::vector<int32_t> bytes(256);
  std::string text;
  for (int32_t id = 0; id < 256; ++id) text += static_cast<char>(bytes[id] = id);
  EXPECT_EQ(tokenizer.decode(bytes), text);
  EXPECT_EQ(tokenizer.decode({256, 257, 260, 261, 258}), "he he<tool call>");
  expect_data_error([&] { tokenizer.encode("a"); }, "scripts/encode.sh");
  expect_data_error([&] { tokenizer.decode({262}); }, "not in the vocabulary");
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.push(0xA9), "\u00E9");
}

TEST(TokenizerJson, PiecesLikeSentencePiecesBecomeText) {
  nlohmann::json json;
  json["model"] = {{"type", "BPE"},
                   {"vocab", {{"<s>", 0}, {"</s>", 1}, {"\u2581the", 2}, {"<0x0A>", 3}, {"a", 4}}}};
  json["decoder"] = {{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
                       {{"type", "ByteFallback"}},
                       {{"type", "Fuse"}},
                       {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  json["added_tokens"] = {{{"id", 0}, {"content", "<s>"}, {"special", true}},
                          {{"id", 1}, {"content", "</s>"}, {"special", true}}};
  const TokenizerFiles files = {{"tokenizer_config.json", R"({"bos_token": "<s>"})"}};
  const Tokenizer tokenizer = Tokenizer::from_bytes(json.dump(), "tokenizer.json", files);
  EXPECT_EQ(tokenizer.start_id(), 0);
  EXPECT_EQ(tokenizer.end_of_text_id(), 1) << "</s>";
  EXPECT_EQ(tokenizer.decode({0, 2, 3, 2, 4, 1}), "the\n thea");
  EXPECT_EQ(tokenizer.text_of(2), " the");
  json["model"]["type"] = "Unigram";
  json["model"]["vocab"] =
      nlohmann::json::parse(R"([["<s>", 0.0], ["</s>", 0.0], ["\u2581", -1]])");
  json["decoder"] = {{"type", "Metaspace"}, {"replacement", "\u2581"}};
  EXPECT_EQ(Tokenizer::from_bytes(json.dump(), "t").decode({2, 2}), " ");
}

TEST(TokenizerJson, WhatIsNotKnownIsRefused) {
  const auto refuse = [](const nlohmann::json& json, const std::string& part) {
    const std::string message =
        expect_data_error([&] { Tokenizer::from_bytes(json.dump(), "its.json"); }, part);
    EXPECT_EQ(message.rfind("its.json", 0), 0u) << message;
  };
  const auto changed = [](const char* pointer, const nlohmann::json& value) {
    nlohmann::json json = byte_level();
    json[nlohmann::json::json_pointer(pointer)] = value;
    return json;
  };
  expect_data_error([] { Tokenizer::from_bytes("{\"model\": ", "its.json"); }, "not valid JSON");
  refuse(changed("/model/type", "WordPiece"), "\"WordPiece\"");
  refuse(changed("/model/vocab", 3), "no \"vocab\"");
  refuse(changed("/model/vocab/he", "x"), "not an integer");
  refuse(changed("/model/vocab/he", -1), "token id -1");
  refuse(changed("/model/vocab/he", 1 << 30), "token id 1073741824");
  refuse(changed("/decoder", nullptr), "decoder is absent");
  refuse(changed("/decoder/type", "WordPiece"), "\"WordPiece\"");
  refuse(changed("/added_tokens", 1), "not a list");
  refuse(changed("/added_tokens/0/content", 1), "no \"content\"");
  refuse(changed("/added_tokens/0/content", "<|other|>"), "no end-of-text token");
  nlohmann::json strip = byte_level();
  strip["decoder"] = {{"type", "Strip"}, {"content", "x"}, {"start", 1}, {"stop", 0}};
  refuse(strip, "strips something else");
}

}  // namespace
}  // namespace stablemask
