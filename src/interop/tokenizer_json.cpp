// The vocabulary of tokenizer.json has the text of each piece, with spaces instead of
// SentencePiece's U+2581. A text then needs no normalisation, and U+2581 in it is a character
// without a piece, which is encoded as its bytes, as data/tokenizer.cpp does it. The line end is an
// added token with the id of EOS: it divides the text, so pieces whose name has a line end occur in
// no text.
#include "src/interop/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/data/sentencepiece_model.h"

namespace stablemask::interop {
namespace {

using Json = nlohmann::ordered_json;
using Piece = SentencePieceModel::Piece;
using PieceType = SentencePieceModel::PieceType;

constexpr const char* kLineEnd = "\n";
// Of the unknown piece, which no text is encoded as, so that it can pad texts and end them. As a
// special token its name is found in texts, so it begins with U+FFFF, which texts should not have.
constexpr const char* kUnknown = "\xEF\xBF\xBF<|unknown|>";
// Of pieces that only stand for bytes: less than any segmentation of their names' characters.
constexpr double kByteScore = -1e4;
constexpr std::string_view kByteNameCharacters = "<0x123456789ABCDEF>";
constexpr int kUnigram = 1;

/// Vocabulary of tokenizer.json by id.
struct Vocabulary {
  std::vector<std::string> texts;
  std::unordered_map<std::string_view, size_t> ids;
  bool has_space = false;
};

std::string vocabulary_text(const Piece& piece, bool is_eos) {
  switch (piece.type) {
    case PieceType::kByte:
      return piece.text;
    case PieceType::kUnknown:
      return kUnknown;
    case PieceType::kControl:
      return is_eos ? kLineEnd : kLineEnd + piece.text;
    default:
      return surface_of(piece.text);
  }
}

Vocabulary make_vocabulary(const SentencePieceModel& model) {
  Vocabulary vocabulary;
  vocabulary.texts.reserve(model.pieces.size());
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    const auto refuse = [&](const char* reason) {
      throw DataError(format("the tokenizer cannot be written as tokenizer.json: piece %zu, ", id) +
                      in_quotes(piece.text) + ", " + reason);
    };
    if (piece.type == PieceType::kUnused) refuse("is unused");
    vocabulary.texts.push_back(vocabulary_text(piece, static_cast<int32_t>(id) == model.eos_id));
    if (!vocabulary.ids.emplace(vocabulary.texts.back(), id).second) {
      refuse("has the text of another piece");
    }
    if (piece.type == PieceType::kNormal && vocabulary.texts.back() == " ") {
      vocabulary.has_space = true;
    }
  }
  return vocabulary;
}

/// Merges of two pieces to a piece. SentencePiece merges the pair whose union has the highest
/// score, in any division; here each division is a rule, earlier rules go first.
Json merges(const SentencePieceModel& model, const Vocabulary& vocabulary) {
  using Merge =
      std::tuple<float, size_t, size_t>;  // −score, id of the union, bytes of the left part
  std::vector<Merge> all;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.pieces[id].type != PieceType::kNormal) continue;
    const std::string_view text = vocabulary.texts[id];
    const auto is_piece = [&](std::string_view part) {
      const auto found = vocabulary.ids.find(part);
      return found != vocabulary.ids.end() &&
             model.pieces[found->second].type == PieceType::kNormal;
    };
    for (size_t at = utf8_character_size(text); at < text.size();
         at += utf8_character_size(text.substr(at))) {
      if (is_piece(text.substr(0, at)) && is_piece(text.substr(at))) {
        all.emplace_back(-model.pieces[id].score, id, at);
      }
    }
  }
  std::sort(all.begin(), all.end());
  Json list = Json::array();
  for (const auto& [score, id, at] : all) {
    const std::string& text = vocabulary.texts[id];
    list.push_back({text.substr(0, at), text.substr(at)});
  }
  return list;
}

/// A character that only occurs within pieces would be merged by SentencePiece and is encoded as
/// its bytes here.
void require_characters(const SentencePieceModel& model, const Vocabulary& vocabulary) {
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.pieces[id].type != PieceType::kNormal) continue;
    const std::string_view text = vocabulary.texts[id];
    for (size_t at = 0; at < text.size();) {
      const size_t size = utf8_character_size(text.substr(at));
      if (!vocabulary.ids.contains(text.substr(at, size))) {
        throw DataError(
            format("the tokenizer cannot be written as tokenizer.json: piece %zu, ", id) +
            in_quotes(model.pieces[id].text) + ", has a character that is no piece");
      }
      at += size;
    }
  }
}

Json unigram_model(const SentencePieceModel& model, const Vocabulary& vocabulary) {
  // A text "<0x41>" with a character that is no piece would be taken for the piece of the byte.
  for (size_t i = 0; i < kByteNameCharacters.size(); ++i) {
    if (vocabulary.ids.contains(kByteNameCharacters.substr(i, 1))) continue;
    throw DataError(
        "the tokenizer cannot be written as tokenizer.json: a unigram model needs a "
        "piece for each character of " +
        std::string(kByteNameCharacters) + ", in which the names of bytes are written");
  }
  Json entries = Json::array();
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    const double score = piece.type == PieceType::kByte ? kByteScore : piece.score;
    entries.push_back({vocabulary.texts[id], score});
  }
  return {{"type", "Unigram"},
          {"unk_id", model.unk_id},
          {"vocab", std::move(entries)},
          {"byte_fallback", true}};
}

Json bpe_model(const SentencePieceModel& model, const Vocabulary& vocabulary) {
  require_characters(model, vocabulary);
  Json entries = Json::object();
  for (size_t id = 0; id < vocabulary.texts.size(); ++id) entries[vocabulary.texts[id]] = id;
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", true},
          {"ignore_merges", false},
          {"vocab", std::move(entries)},
          {"merges", merges(model, vocabulary)}};
}

/// A token that is found in the text before the model sees it. Decoders may leave out special ones.
Json added_token(size_t id, const std::string& text, bool special) {
  return {{"id", id},        {"content", text},     {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

Json tokenizer_json(const SentencePieceModel& model) {
  const Vocabulary vocabulary = make_vocabulary(model);
  Json added = Json::array();
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const PieceType type = model.pieces[id].type;
    const bool is_eos = static_cast<int32_t>(id) == model.eos_id;
    if (is_eos || type == PieceType::kUserDefined || type == PieceType::kUnknown) {
      added.push_back(added_token(id, vocabulary.texts[id], type == PieceType::kUnknown));
    }
  }
  // Without a piece for a single space, the space divides the text and is encoded as its byte.
  Json splitter = nullptr;
  if (!vocabulary.has_space) {
    splitter = {{"type", "Split"},
                {"pattern", {{"String", " "}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  }
  const Json eos = {{"SpecialToken", {{"id", kLineEnd}, {"type_id", 0}}}};
  const auto sequence = [](const char* name) {
    return Json{{"Sequence", {{"id", name}, {"type_id", 0}}}};
  };
  const Json before_texts = {
      {"type", "TemplateProcessing"},
      {"single", {eos, sequence("A")}},
      {"pair", {eos, sequence("A"), eos, sequence("B")}},
      {"special_tokens",
       {{kLineEnd, {{"id", kLineEnd}, {"ids", {model.eos_id}}, {"tokens", {kLineEnd}}}}}}};
  const Json decoders = {{{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", nullptr},
          {"pre_tokenizer", std::move(splitter)},
          {"post_processor", before_texts},
          {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
          {"model", model.model_type == kUnigram ? unigram_model(model, vocabulary)
                                                 : bpe_model(model, vocabulary)}};
}

}  // namespace

std::map<std::string, std::string> tokenizer_files(const Tokenizer& tokenizer, int64_t context) {
  const SentencePieceModel model =
      read_sentencepiece_model(tokenizer.bytes(), "the checkpoint's tokenizer");
  // Line ends are no special token: transformers leaves those out of decoded texts.
  const Json special = {{"eos_token", kUnknown}, {"pad_token", kUnknown}};
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"model_max_length", context},
                 {"padding_side", "left"}};
  config.update(special);
  return {{"tokenizer.json", json_text(tokenizer_json(model), 1) + "\n"},
          {"tokenizer_config.json", json_text(config, 2) + "\n"},
          {"special_tokens_map.json", json_text(special, 2) + "\n"}};
}

}  // namespace stablemask::interop
