// SentencePiece only segments a line. Line ends, U+2581 (which SentencePiece uses for the space)
// and decoding are handled here, because the library does not preserve them byte for byte.
#include "stablemask/data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>

#include "src/data/files.h"
#include "src/data/model_proto.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/utf8.h"

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
constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581, SentencePiece's space
constexpr std::string_view kUnkText = "<unk>";

using Piece = SentencePieceModel::Piece;
using PieceType = SentencePieceModel::PieceType;

// The byte of a byte piece, "<0x0A>", or -1.
int byte_of(const Piece& piece) {
  static constexpr std::string_view kDigits = "0123456789ABCDEF";
  const std::string& text = piece.text;
  if (piece.type != PieceType::kByte || text.size() != 6 || text.rfind("<0x", 0) != 0) return -1;
  const size_t high = kDigits.find(text[3]);
  const size_t low = kDigits.find(text[4]);
  if (high == kDigits.npos || low == kDigits.npos || text[5] != '>') return -1;
  return static_cast<int>(high * 16 + low);
}

std::string surface_of(const std::string& piece) {
  std::string surface;
  for (size_t at = 0; at < piece.size();) {
    if (piece.compare(at, kSpaceSymbol.size(), kSpaceSymbol) == 0) {
      surface += ' ';
      at += kSpaceSymbol.size();
    } else {
      surface += piece[at++];
    }
  }
  return surface;
}

}  // namespace

struct Tokenizer::State {
  std::string bytes;
  std::string sha256;
  std::vector<std::string> surfaces;  // text of each id
  std::array<int32_t, 256> byte_ids{};
  int32_t eos_id = -1;
  int32_t unk_id = -1;
  int32_t unk_text_id = -1;
  sentencepiece::SentencePieceProcessor processor;

  void check_settings(const SentencePieceModel& model, const std::string& name) const;
  void take_pieces(const SentencePieceModel& model, const std::string& name);
  void encode_segment(std::string_view text, std::vector<int32_t>& ids) const;
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

void Tokenizer::State::take_pieces(const SentencePieceModel& model, const std::string& name) {
  const auto fail = [&](const std::string& what) { throw DataError(name + ": " + what); };
  std::unordered_map<std::string_view, int32_t> seen;
  byte_ids.fill(-1);
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    const auto id = static_cast<int32_t>(i);
    if (piece.text.empty()) fail(format("piece %d is empty", id));
    if (!seen.emplace(piece.text, id).second) fail(format("piece %d is there twice", id));
    if (!is_utf8(piece.text)) fail(format("piece %d is not valid UTF-8", id));
    if (piece.text.find('\n') != std::string::npos) fail(format("piece %d has a line end", id));
    switch (piece.type) {
      case PieceType::kUnknown:
        if (unk_id >= 0) fail("it has two unknown pieces");
        unk_id = id;
        surfaces.emplace_back();
        break;
      case PieceType::kControl:
        surfaces.emplace_back(id == model.eos_id ? "\n" : "");
        break;
      case PieceType::kByte: {
        const int byte = byte_of(piece);
        if (byte < 0) fail(format("piece %d is no byte piece", id));
        byte_ids[static_cast<size_t>(byte)] = id;
        surfaces.emplace_back(1, static_cast<char>(byte));
        break;
      }
      default:
        surfaces.push_back(surface_of(piece.text));
    }
    if (piece.text == kUnkText && piece.type == PieceType::kUserDefined) unk_text_id = id;
  }
  if (unk_id < 0 || unk_id != model.unk_id) fail("it has no unknown piece");
  if (std::count(byte_ids.begin(), byte_ids.end(), -1))
    fail("it lacks some of the 256 byte pieces");
  const auto space = seen.find(kSpaceSymbol);
  const auto space_type = [&] { return model.pieces[static_cast<size_t>(space->second)].type; };
  if (space == seen.end() || space_type() != PieceType::kNormal) {
    // Its bytes would come back as U+2581.
    fail("it has no piece for a single space");
  }
  const auto vocab = static_cast<int32_t>(model.pieces.size());
  if (model.eos_id < 0 || model.eos_id >= vocab ||
      model.pieces[static_cast<size_t>(model.eos_id)].type != PieceType::kControl) {
    fail("it has no end-of-sentence piece, which stands for the line end");
  }
  eos_id = model.eos_id;
  if (unk_text_id < 0) {
    fail(
        "the text \"<unk>\" is not a user-defined piece of it, so word-level perplexity would be "
        "wrong; train one with \"stablemask tokenizer train\"");
  }
}

void Tokenizer::State::encode_segment(std::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  std::vector<int> encoded;
  const auto status = processor.Encode(text, &encoded);
  if (!status.ok()) throw DataError("SentencePiece cannot encode: " + status.ToString());
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
  // SentencePiece cannot tell a literal U+2581 from a space, so that one goes in as its bytes.
  for (size_t at = 0; (at = line.find(kSpaceSymbol)) != std::string_view::npos;) {
    state_->encode_segment(line.substr(0, at), ids);
    for (const char byte : kSpaceSymbol) {
      ids.push_back(state_->byte_ids[static_cast<unsigned char>(byte)]);
    }
    line.remove_prefix(at + kSpaceSymbol.size());
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
