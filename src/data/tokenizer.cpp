// SentencePiece only segments a line. Line ends, U+2581 (which SentencePiece uses for the space)
// and decoding are handled here, because the library does not preserve them byte for byte.
#include "stablemask/data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "src/data/files.h"
#include "src/data/long_text.h"
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
constexpr size_t kPartBytes = size_t{1} << 16;  // a longer text is encoded in parts of this size
constexpr std::string_view kUnkText = "<unk>";
constexpr std::string_view kEndOfText = "<|endoftext|>";

using Piece = SentencePieceModel::Piece;
using PieceType = SentencePieceModel::PieceType;

}  // namespace

struct Tokenizer::State {
  std::string bytes;
  std::string sha256;
  std::vector<std::string> surfaces;  // text of each id
  std::array<int32_t, 256> byte_ids{};
  int32_t eos_id = -1;
  int32_t unk_id = -1;
  int32_t end_of_text_id = -1;
  int32_t unk_text_id = -1;
  bool space_piece = false;                 // without one, a space is encoded as its byte
  bool in_parts = true;                     // whether a long text may be encoded in parts
  std::unique_ptr<UnigramEncoder> unigram;  // null: byte pair merges
  sentencepiece::SentencePieceProcessor processor;

  void check_settings(const SentencePieceModel& model, const std::string& name) const;
  void take_pieces(const SentencePieceModel& model, const std::string& name);
  void take_piece(const Piece& piece, int32_t id, const std::string& name);
  size_t find_literal(std::string_view line) const;
  void encode_segment(std::string_view text, std::vector<int32_t>& ids) const;
  std::vector<int32_t> encode_whole(std::string_view text) const;
};

void Tokenizer::State::check_settings(const SentencePieceModel& model,
                                      const std::string& name) const {
  const auto require = [&](bool kept, const char* promise) {
    if (kept) return;
    throw DataError(name + " does not keep every byte of a text: " + promise +
                    "; train one with \"stablemask tokenizer train\"");
  };
  require(model.model_type == 1 || model.model_type == 2, "its type is neither unigram nor bpe");
  require(model.charsmap.empty(), "it normalises (normalization_rule_name is not identity)");
  require(!model.add_dummy_prefix, "it adds a space before the text (add_dummy_prefix)");
  require(!model.remove_extra_whitespaces, "it drops spaces (remove_extra_whitespaces)");
  require(model.escape_whitespaces, "it does not mark spaces (escape_whitespaces is off)");
  require(!model.whitespace_as_suffix, "it moves spaces (treat_whitespace_as_suffix)");
  require(model.byte_fallback, "it has no byte fallback");
}

void Tokenizer::State::take_piece(const Piece& piece, int32_t id, const std::string& name) {
  const auto fail = [&](const char* what) {
    throw DataError(format("%s: piece %d, ", name.c_str(), id) + in_quotes(piece.text) + ", " +
                    what);
  };
  if (piece.text.empty()) fail("is empty");
  if (!is_utf8(piece.text)) fail("is not valid UTF-8");
  if (piece.text.find('\n') != std::string::npos) fail("has a line end");
  // SentencePiece looks its pieces up as strings that end with a NUL.
  if (piece.text.find('\0') != std::string::npos) fail("has a NUL character");
  if (!std::isfinite(piece.score)) fail("has a score that is not a number");
  switch (piece.type) {
    case PieceType::kUnknown:
      if (unk_id >= 0) fail("is a second unknown piece");
      unk_id = id;
      surfaces.emplace_back();
      break;
    case PieceType::kControl:
      surfaces.emplace_back(id == eos_id ? "\n" : "");
      break;
    case PieceType::kByte: {
      const int byte = byte_of(piece);
      if (byte < 0) fail("is not the name of a byte, such as <0x0A>");
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

void Tokenizer::State::take_pieces(const SentencePieceModel& model, const std::string& name) {
  const auto fail = [&](const std::string& what) { throw DataError(name + ": " + what); };
  std::unordered_map<std::string_view, int32_t> seen;
  byte_ids.fill(-1);
  eos_id = model.eos_id;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    const auto id = static_cast<int32_t>(i);
    take_piece(piece, id, name);
    const auto [first, is_new] = seen.emplace(piece.text, id);
    if (!is_new) {
      fail(format("pieces %d and %d are the same, ", first->second, id) + in_quotes(piece.text));
    }
    // Byte pair merges begin with the characters of a text, looked up among all pieces.
    if (piece.type == PieceType::kControl && model.model_type == 2 &&
        utf8_character_size(piece.text) == piece.text.size()) {
      fail(format("piece %d, ", id) + in_quotes(piece.text) +
           ", is a control piece, so a text with this character cannot be encoded");
    }
    // Of byte pair merges only: see encode_bpe_in_parts.
    if (piece.type == PieceType::kUnused && model.model_type == 2) in_parts = false;
  }
  if (unk_id < 0 || unk_id != model.unk_id) fail("it has no unknown piece");
  if (end_of_text_id < 0) end_of_text_id = unk_id;
  if (std::count(byte_ids.begin(), byte_ids.end(), -1)) {
    fail("it lacks some of the 256 byte pieces");
  }
  const auto vocab = static_cast<int32_t>(model.pieces.size());
  if (eos_id < 0 || eos_id >= vocab ||
      model.pieces[static_cast<size_t>(eos_id)].type != PieceType::kControl) {
    fail("it has no end-of-sentence piece, which stands for the line end");
  }
  if (unk_text_id < 0) {
    fail(
        "the text \"<unk>\" is not a user-defined piece of it, so word-level perplexity would be "
        "wrong; train one with \"stablemask tokenizer train\"");
  }
  if (model.model_type == 1) unigram = std::make_unique<UnigramEncoder>(model);
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
      unigram->encode(text, kPartBytes, ids);
    } else {
      const auto encode = [this](std::string_view part) { return encode_whole(part); };
      encode_bpe_in_parts(text, kPartBytes, encode, surfaces, ids);
    }
    return;
  }
  const std::vector<int32_t> encoded = encode_whole(text);
  ids.insert(ids.end(), encoded.begin(), encoded.end());
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::string& path) {
  return from_bytes(read_small_file(path, kMaxModelBytes), path);
}

Tokenizer Tokenizer::from_bytes(std::string bytes, const std::string& name) {
  auto state = std::make_unique<State>();
  const SentencePieceModel model = read_sentencepiece_model(bytes, name);
  // Checked before the library parses the bytes, because it accepts damaged models.
  state->check_settings(model, name);
  state->take_pieces(model, name);
  const auto status = state->processor.LoadFromSerializedProto(bytes);
  if (!status.ok()) throw DataError(name + ": SentencePiece refuses it: " + status.ToString());
  state->sha256 = sha256_hex(bytes.data(), bytes.size());
  state->bytes = std::move(bytes);
  return Tokenizer(std::move(state));
}

void Tokenizer::encode_line(std::string_view line, std::vector<int32_t>& ids) const {
  if (const std::string problem = utf8_problem(line); !problem.empty()) throw DataError(problem);
  if (line.find('\n') != std::string_view::npos) {
    throw DataError("encode_line takes one line, without its line end");
  }
  for (size_t at = 0; (at = state_->find_literal(line)) != std::string_view::npos;) {
    state_->encode_segment(line.substr(0, at), ids);
    const std::string_view literal = line.substr(at, line[at] == ' ' ? 1 : kSpaceSymbol.size());
    for (const char byte : literal) {
      ids.push_back(state_->byte_ids[static_cast<unsigned char>(byte)]);
    }
    line.remove_prefix(at + literal.size());
  }
  state_->encode_segment(line, ids);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
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
  return text;
}

const std::string& Tokenizer::text_of(int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw DataError(format("token %d is not in the vocabulary of %d", id, vocab_size()));
  }
  return state_->surfaces[static_cast<size_t>(id)];
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(state_->surfaces.size()); }
int32_t Tokenizer::eos_id() const { return state_->eos_id; }
int32_t Tokenizer::end_of_text_id() const { return state_->end_of_text_id; }
int32_t Tokenizer::unk_text_id() const { return state_->unk_text_id; }
const std::string& Tokenizer::sha256() const { return state_->sha256; }
const std::string& Tokenizer::bytes() const { return state_->bytes; }

std::string StreamDecoder::push(int32_t id) {
  held_ += tokenizer_.text_of(id);
  const size_t complete = held_.size() - utf8_unfinished_size(held_);
  std::string text = held_.substr(0, complete);
  held_.erase(0, complete);
  return text;
}

std::string StreamDecoder::finish() { return std::exchange(held_, {}); }

}  // namespace stablemask
