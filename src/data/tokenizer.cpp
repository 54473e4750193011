// SentencePiece only segments a line. Line ends, U+2581 (which SentencePiece uses for the space)
// and decoding are handled here, because the library does not preserve them byte for byte.
#include "stablemask/data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "src/data/files.h"
#include "src/data/long_text.h"
#include "src/data/token_texts.h"
#include "src/data/word_encoder.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/data/sentencepiece_model.h"

// libsentencepiece and LibTorch's libc10 both export a variable of this name, of 32 and of 4 bytes.
// The dynamic linker merges them. With libc10's 4 bytes SentencePiece's constructor would overwrite
// the next variable, a flag that turns a failed allocation into an abort. The definition in the
// program takes precedence over both.
extern "C" {
alignas(16) char FLAGS_minloglevel[64] = {};
}

namespace stablemask {
namespace {

constexpr size_t kMaxModelBytes = size_t{256} << 20;
constexpr std::string_view kSpaceSymbol = SentencePieceModel::kSpaceSymbol;
constexpr std::string_view kUnkText = "<unk>";
constexpr std::string_view kEndOfText = "<|endoftext|>";

using Piece = SentencePieceModel::Piece;
using PieceType = SentencePieceModel::PieceType;

/// What pieces lack for a lossless tokenizer; "": nothing.
std::string loss_by_pieces(const std::vector<Piece>& pieces, int32_t eos_id) {
  int bytes = 0;
  bool unk_text = false;
  for (const Piece& piece : pieces) {
    if (piece.type != PieceType::kControl && piece.text.find('\n') != std::string::npos) {
      return "a line end is in one of its pieces";
    }
    bytes += byte_of(piece) >= 0;
    unk_text |= piece.text == kUnkText && piece.type == PieceType::kUserDefined;
  }
  if (bytes < 256) return "it lacks some of the 256 byte pieces";
  if (eos_id < 0 || static_cast<size_t>(eos_id) >= pieces.size() ||
      pieces[static_cast<size_t>(eos_id)].type != PieceType::kControl) {
    return "it has no end-of-sentence piece, which stands for the line end";
  }
  return unk_text ? "" : "the text \"<unk>\" is not a user-defined piece of it";
}

/// What such a model does not keep of a text; "": it loses no byte.
std::string loss_of(const SentencePieceModel& model) {
  if (model.model_type != 1 && model.model_type != 2) return "its type is neither unigram nor bpe";
  if (!model.charsmap.empty()) {
    return "it normalises (normalization_rule_name is not identity)";
  }
  if (model.add_dummy_prefix) return "it adds a space before the text (add_dummy_prefix)";
  if (model.remove_extra_whitespaces) return "it drops spaces (remove_extra_whitespaces)";
  if (!model.escape_whitespaces) return "it does not mark spaces (escape_whitespaces is off)";
  if (model.whitespace_as_suffix) return "it moves spaces (treat_whitespace_as_suffix)";
  if (!model.byte_fallback) return "it has no byte fallback";
  return loss_by_pieces(model.pieces, model.eos_id);
}

/// Throws DataError for pieces that no model may have: the library accepts them and fails later.
void require_sound(const SentencePieceModel& model, const std::string& name) {
  const auto fail = [&](const std::string& what) { throw DataError(name + ": " + what); };
  if (!model.has_trainer_spec || !model.has_normalizer_spec) fail("is cut off");
  if (const std::string problem = charsmap_problem(model.charsmap); !problem.empty()) fail(problem);
  std::unordered_map<std::string_view, size_t> seen;
  int unknown = 0;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    const auto fail_piece = [&](const char* what) {
      fail(format("piece %zu, ", id) + in_quotes(piece.text) + ", " + what);
    };
    if (piece.text.empty()) fail_piece("is empty");
    if (!is_utf8(piece.text)) fail_piece("is not valid UTF-8");
    // SentencePiece looks its pieces up as strings that end with a NUL.
    if (piece.text.find('\0') != std::string::npos) fail_piece("has a NUL character");
    if (!std::isfinite(piece.score)) fail_piece("has a score that is not a number");
    if (piece.type == PieceType::kByte && byte_of(piece) < 0) {
      fail_piece("is not the name of a byte, such as <0x0A>");
    }
    if (piece.type == PieceType::kUnknown && unknown++ > 0) fail_piece("is a second unknown piece");
    const auto [first, is_new] = seen.emplace(piece.text, id);
    if (!is_new) {
      fail(format("pieces %zu and %zu are the same, ", first->second, id) + in_quotes(piece.text));
    }
    // Byte pair merges begin with the characters of a text, looked up among all pieces.
    if (piece.type == PieceType::kControl && model.model_type == 2 &&
        utf8_character_size(piece.text) == piece.text.size()) {
      fail_piece("is a control piece, so a text with this character cannot be encoded");
    }
  }
  const auto unk = static_cast<size_t>(model.unk_id);
  if (unk >= model.pieces.size() || model.pieces[unk].type != PieceType::kUnknown) {
    fail("it has no unknown piece");
  }
}

TokenizerFiles companions_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : path.substr(0, slash + 1);
  TokenizerFiles files;
  for (const std::string& name : Tokenizer::companion_names()) {
    std::error_code ignored;
    if (folder + name == path || !std::filesystem::exists(folder + name, ignored)) continue;
    files[name] = read_small_file(folder + name, kMaxModelBytes);
  }
  return files;
}

}  // namespace

struct Tokenizer::State {
  std::string bytes;
  std::string sha256;
  std::string loss;                   // "": lossless
  std::vector<std::string> surfaces;  // text of each id; lossless only, else in `foreign`
  std::array<int32_t, 256> byte_ids{};
  int32_t eos_id = -1;
  int32_t unk_id = -1;
  int32_t end_of_text_id = -1;
  int32_t unk_text_id = -1;
  bool space_piece = false;                 // without one, a space is encoded as its byte
  bool in_parts = true;                     // whether a long text may be encoded in parts
  std::unique_ptr<UnigramEncoder> unigram;  // null: byte pair merges
  std::optional<WordEnds> word_ends;        // null: words depend on the rest of a line
  sentencepiece::SentencePieceProcessor processor;
  std::string name;
  bool can_encode = true;
  TokenTexts foreign;
  TokenizerFiles companions;

  static std::unique_ptr<State> make(std::string bytes, const std::string& name,
                                     const std::function<TokenizerFiles()>& companions);
  void take_lossless(const SentencePieceModel& model);
  void take_piece(const Piece& piece, int32_t id);
  size_t find_literal(std::string_view line) const;
  void encode_line(std::string_view line, const WordEncoder::AppendIds& encode,
                   std::vector<int32_t>& ids) const;
  void encode_segment(std::string_view text, std::vector<int32_t>& ids) const;
  std::vector<int32_t> encode_whole(std::string_view text) const;
  std::vector<int32_t> encode_foreign(std::string_view text) const;
  const std::vector<std::string>& texts() const { return loss.empty() ? surfaces : foreign.texts; }
};

void Tokenizer::State::take_piece(const Piece& piece, int32_t id) {
  switch (piece.type) {
    case PieceType::kUnknown:
      unk_id = id;
      surfaces.emplace_back();
      break;
    case PieceType::kControl:
      if (piece.text.find('\n') != std::string::npos) {
        throw DataError(format("%s: piece %d, ", name.c_str(), id) + in_quotes(piece.text) +
                        ", has a line end");
      }
      surfaces.emplace_back(id == eos_id ? "\n" : "");
      break;
    case PieceType::kByte: {
      const int byte = byte_of(piece);
      byte_ids[static_cast<size_t>(byte)] = id;
      surfaces.emplace_back(1, static_cast<char>(byte));
      break;
    }
    default:
      surfaces.push_back(surface_of(piece.text));
  }
  if (piece.text == kEndOfText &&
      (piece.type == PieceType::kControl || piece.type == PieceType::kUserDefined)) {
    end_of_text_id = id;
  }
  if (piece.text == kUnkText && piece.type == PieceType::kUserDefined) unk_text_id = id;
  if (piece.text == kSpaceSymbol && piece.type == PieceType::kNormal) space_piece = true;
}

void Tokenizer::State::take_lossless(const SentencePieceModel& model) {
  byte_ids.fill(-1);
  eos_id = model.eos_id;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    take_piece(piece, static_cast<int32_t>(i));
    // Of byte pair merges only: see encode_bpe_in_parts.
    if (piece.type == PieceType::kUnused && model.model_type == 2) in_parts = false;
  }
  if (end_of_text_id < 0) end_of_text_id = unk_id;
  if (model.model_type == 1) unigram = std::make_unique<UnigramEncoder>(model);
  if (in_parts) word_ends.emplace(model);
}

// The next character that is encoded as its bytes: U+2581, which SentencePiece cannot tell from a
// space, and, when no piece is a space alone, the space, whose bytes would come back as U+2581.
size_t Tokenizer::State::find_literal(std::string_view line) const {
  if (space_piece) return line.find(kSpaceSymbol);
  for (size_t at = 0; at < line.size(); ++at) {
    if (line[at] == ' ' || line.substr(at).starts_with(kSpaceSymbol)) return at;
  }
  return std::string_view::npos;
}

std::vector<int32_t> Tokenizer::State::encode_whole(std::string_view text) const {
  std::vector<int> ids;
  const auto status = processor.Encode(text, &ids);
  if (!status.ok()) throw DataError("SentencePiece cannot encode: " + status.ToString());
  return {ids.begin(), ids.end()};
}

void Tokenizer::State::encode_segment(std::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  if (text.size() > kPartBytes && in_parts) {
    if (unigram) {
      float score = 0;
      unigram->encode(text, kPartBytes, ids, score);
    } else {
      const auto encode = [this](std::string_view part) { return encode_whole(part); };
      encode_bpe_in_parts(text, kPartBytes, encode, surfaces, ids);
    }
    return;
  }
  const std::vector<int32_t> encoded = encode_whole(text);
  ids.insert(ids.end(), encoded.begin(), encoded.end());
}

std::vector<int32_t> Tokenizer::State::encode_foreign(std::string_view text) const {
  if (!can_encode) {
    throw DataError(name +
                    ": a text cannot be encoded with a tokenizer.json here; scripts/encode.sh "
                    "encodes it, and ids are taken in its place");
  }
  if (const std::string problem = utf8_problem(text); !problem.empty()) throw DataError(problem);
  if (text.size() > kLongestText) {
    throw DataError(
        format("%s encodes a text as a whole, at most %zu bytes, and this one has %zu; "
               "divide it into documents",
               name.c_str(), kLongestText, text.size()));
  }
  return encode_whole(text);
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

const std::vector<std::string>& Tokenizer::companion_names() {
  static const std::vector<std::string> kNames = {"tokenizer.json", "tokenizer_config.json",
                                                  "special_tokens_map.json", "added_tokens.json",
                                                  "chat_template.jinja"};
  return kNames;
}

Tokenizer Tokenizer::load(const std::string& path) {
  return Tokenizer(State::make(read_small_file(path, kMaxModelBytes), path,
                               [&] { return companions_of(path); }));
}

Tokenizer Tokenizer::from_bytes(std::string bytes, const std::string& name,
                                TokenizerFiles companions) {
  return Tokenizer(State::make(std::move(bytes), name, [&] { return std::move(companions); }));
}

std::unique_ptr<Tokenizer::State> Tokenizer::State::make(
    std::string bytes, const std::string& name, const std::function<TokenizerFiles()>& companions) {
  auto state = std::make_unique<State>();
  state->name = name;
  if (bytes.starts_with('{')) {
    state->loss = "it is a tokenizer.json, which may normalise a text";
    state->can_encode = false;
    state->companions = companions();
    state->foreign = read_tokenizer_json(bytes, name, state->companions);
  } else {
    const SentencePieceModel model = read_sentencepiece_model(bytes, name);
    // Checked before the library parses the bytes, because it accepts damaged models.
    require_sound(model, name);
    state->loss = loss_of(model);
    if (state->loss.empty()) {
      state->take_lossless(model);
    } else {
      state->companions = companions();
      state->foreign = read_foreign_pieces(model, name, state->companions);
    }
    const auto status = state->processor.LoadFromSerializedProto(bytes);
    if (!status.ok()) throw DataError(name + ": SentencePiece refuses it: " + status.ToString());
  }
  state->sha256 = sha256_hex(bytes.data(), bytes.size());
  state->bytes = std::move(bytes);
  return state;
}

// `encode` gives the ids of the text between the characters that are encoded as their bytes.
void Tokenizer::State::encode_line(std::string_view line, const WordEncoder::AppendIds& encode,
                                   std::vector<int32_t>& ids) const {
  if (!loss.empty()) throw std::logic_error("encode_line: the tokenizer is not lossless");
  if (const std::string problem = utf8_problem(line); !problem.empty()) throw DataError(problem);
  if (line.find('\n') != std::string_view::npos) {
    throw DataError("encode_line takes one line, without its line end");
  }
  for (size_t at = 0; (at = find_literal(line)) != std::string_view::npos;) {
    encode(line.substr(0, at), ids);
    const std::string_view literal = line.substr(at, line[at] == ' ' ? 1 : kSpaceSymbol.size());
    for (const char byte : literal) ids.push_back(byte_ids[static_cast<unsigned char>(byte)]);
    line.remove_prefix(at + literal.size());
  }
  encode(line, ids);
}

void Tokenizer::encode_line(std::string_view line, std::vector<int32_t>& ids) const {
  const auto encode = [this](std::string_view text, std::vector<int32_t>& to) {
    state_->encode_segment(text, to);
  };
  state_->encode_line(line, encode, ids);
}

LineEncoder::LineEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
LineEncoder::~LineEncoder() = default;

void LineEncoder::append(std::string_view line, std::vector<int32_t>& ids) {
  const Tokenizer::State& state = *tokenizer_.state_;
  if (!state.word_ends) return tokenizer_.encode_line(line, ids);
  if (!words_) {
    const auto encode = [&state](std::string_view text, std::vector<int32_t>& to) {
      state.encode_segment(text, to);
    };
    words_ = std::make_unique<WordEncoder>(*state.word_ends, state.unigram.get(), encode);
  }
  const auto encode = [this](std::string_view text, std::vector<int32_t>& to) {
    words_->append(text, to);
  };
  state.encode_line(line, encode, ids);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  if (!lossless()) return state_->encode_foreign(text);
  std::vector<int32_t> ids;
  std::string_view line;
  bool terminated = false;
  for (size_t number = 1; take_line(text, line, terminated); ++number) {
    try {
      encode_line(line, ids);
    } catch (const DataError& error) {
      throw DataError(format("line %zu: %s", number, error.what()));
    }
    if (terminated) ids.push_back(state_->eos_id);
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (const int32_t id : ids) text += text_of(id);
  // The ids are known to be in the vocabulary.
  return lossless() ? text : state_->foreign.decode(ids);
}

const std::string& Tokenizer::text_of(int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw DataError(format("token %d is not in the vocabulary of %d", id, vocab_size()));
  }
  return state_->texts()[static_cast<size_t>(id)];
}

const std::string& Tokenizer::loss() const { return state_->loss; }
bool Tokenizer::can_encode() const { return state_->can_encode; }
int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(state_->texts().size()); }
int32_t Tokenizer::eos_id() const { return lossless() ? state_->eos_id : end_of_text_id(); }
int32_t Tokenizer::start_id() const {
  if (lossless()) return state_->eos_id;
  return state_->foreign.start_id >= 0 ? state_->foreign.start_id : end_of_text_id();
}
int32_t Tokenizer::end_of_text_id() const {
  return lossless() ? state_->end_of_text_id : state_->foreign.end_of_text_id;
}
int32_t Tokenizer::unk_text_id() const { return state_->unk_text_id; }
const std::string& Tokenizer::sha256() const { return state_->sha256; }
const std::string& Tokenizer::bytes() const { return state_->bytes; }
const TokenizerFiles& Tokenizer::companions() const { return state_->companions; }

std::string StreamDecoder::push(int32_t id) {
  held_ += tokenizer_.text_of(id);
  const size_t complete = held_.size() - utf8_unfinished_size(held_);
  std::string text = held_.substr(0, complete);
  held_.erase(0, complete);
  return text;
}

std::string StreamDecoder::finish() { return std::exchange(held_, {}); }

}  // namespace stablemask
