// Field numbers are those of SentencePiece's sentencepiece_model.proto:
//   ModelProto      1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec
//   SentencePiece   1 piece (string), 2 score (float), 3 type (enum)
//   TrainerSpec     3 model_type, 24 treat_whitespace_as_suffix, 35 byte_fallback, 40 unk_id,
//                   41 bos_id, 42 eos_id, 44 unk_surface
//   NormalizerSpec  2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
//                   5 escape_whitespaces
// and the wire format is that of protobuf.dev/programming-guides/encoding.
#include "stablemask/data/sentencepiece_model.h"

#include <bit>

#include "stablemask/base/error.h"

namespace stablemask {
namespace {

class WireReader {
 public:
  enum class Type { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
  struct Field {
    uint32_t number = 0;
    Type type = Type::kVarint;
    uint64_t varint = 0;     // kVarint
    uint32_t fixed32 = 0;    // kFixed32
    std::string_view bytes;  // kBytes
  };

  WireReader(std::string_view data, const std::string& name) : data_(data), name_(name) {}

  bool next(Field& field) {
    if (data_.empty()) return false;
    const uint64_t key = varint();
    field.type = static_cast<Type>(key & 7);
    field.number = static_cast<uint32_t>(key >> 3);
    if (field.number == 0 || key >> 32) fail();
    switch (field.type) {
      case Type::kVarint:
        field.varint = varint();
        return true;
      case Type::kFixed64:
        take(8);
        return true;
      case Type::kFixed32:
        field.fixed32 = fixed32();
        return true;
      case Type::kBytes:
        field.bytes = take(varint());
        return true;
    }
    fail();
  }

  [[noreturn]] void fail() const {
    throw DataError(name_ + " is not a SentencePiece model, or is damaged");
  }

 private:
  std::string_view take(uint64_t size) {
    if (size > data_.size()) fail();
    const std::string_view taken = data_.substr(0, size);
    data_.remove_prefix(size);
    return taken;
  }

  // Little-endian.
  uint32_t fixed32() {
    uint32_t value = 0;
    int shift = 0;
    for (const char byte : take(4)) {
      value |= uint32_t{static_cast<unsigned char>(byte)} << shift;
      shift += 8;
    }
    return value;
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    fail();
  }

  std::string_view data_;
  const std::string& name_;
};

using Type = WireReader::Type;

SentencePieceModel::Piece read_piece(std::string_view bytes, const std::string& name) {
  SentencePieceModel::Piece piece;
  WireReader reader(bytes, name);
  for (WireReader::Field field; reader.next(field);) {
    if (field.number == 1 && field.type == Type::kBytes) piece.text = field.bytes;
    if (field.number == 2 && field.type == Type::kFixed32) {
      piece.score = std::bit_cast<float>(field.fixed32);
    }
    if (field.number == 3 && field.type == Type::kVarint) {
      if (field.varint < 1 || field.varint > 6) reader.fail();
      piece.type = static_cast<SentencePieceModel::PieceType>(field.varint);
    }
  }
  return piece;
}

void read_trainer_spec(std::string_view bytes, const std::string& name, SentencePieceModel& model) {
  model.has_trainer_spec = true;
  WireReader reader(bytes, name);
  for (WireReader::Field field; reader.next(field);) {
    if (field.number == 44 && field.type == Type::kBytes) model.unk_surface = field.bytes;
    if (field.type != Type::kVarint) continue;
    const auto value = static_cast<int32_t>(field.varint);
    if (field.number == 3) model.model_type = value;
    if (field.number == 24) model.whitespace_as_suffix = value != 0;
    if (field.number == 35) model.byte_fallback = value != 0;
    if (field.number == 40) model.unk_id = value;
    if (field.number == 41) model.bos_id = value;
    if (field.number == 42) model.eos_id = value;
  }
}

void read_normalizer_spec(std::string_view bytes, const std::string& name,
                          SentencePieceModel& model) {
  model.has_normalizer_spec = true;
  WireReader reader(bytes, name);
  for (WireReader::Field field; reader.next(field);) {
    if (field.number == 2 && field.type == Type::kBytes) model.charsmap = field.bytes;
    if (field.type != Type::kVarint) continue;
    if (field.number == 3) model.add_dummy_prefix = field.varint != 0;
    if (field.number == 4) model.remove_extra_whitespaces = field.varint != 0;
    if (field.number == 5) model.escape_whitespaces = field.varint != 0;
  }
}

/// A unit of Darts' double array. A node at `at` has the child for a byte c at children(at) ^ c, if
/// the label of the unit there is c, and its value at children(at).
struct TrieUnit {
  uint32_t bits;

  bool has_value() const { return (bits >> 8 & 1) != 0; }
  uint32_t value() const { return bits & 0x7FFFFFFF; }
  uint32_t label() const { return bits & 0x800000FF; }
  size_t children(size_t at) const {
    return at ^ size_t { bits >> 10 } << ((bits & 0x200) >> 6);
  }
};

std::vector<TrieUnit> read_units(std::string_view bytes) {
  std::vector<TrieUnit> units(bytes.size() / sizeof(uint32_t));
  for (size_t i = 0; i < bytes.size(); ++i) {
    units[i / 4].bits |= uint32_t{static_cast<unsigned char>(bytes[i])} << (8 * (i % 4));
  }
  return units;
}

}  // namespace

std::string charsmap_problem(std::string_view charsmap) {
  const std::string problem = "its precompiled_charsmap is damaged";
  if (charsmap.empty()) return "";
  if (charsmap.size() < 4) return problem;
  const size_t trie_bytes = read_units(charsmap.substr(0, 4))[0].bits;
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes >= charsmap.size() - 4) return problem;
  const std::vector<TrieUnit> units = read_units(charsmap.substr(4, trie_bytes));
  const std::string_view texts = charsmap.substr(4 + trie_bytes);
  if (texts.back() != '\0') return problem;
  std::vector<bool> seen(units.size());
  seen[0] = true;
  for (std::vector<size_t> open = {0}; !open.empty();) {
    const size_t at = open.back();
    open.pop_back();
    const size_t children = units[at].children(at);
    if ((children | 0xFF) >= units.size()) return problem;
    if (units[at].has_value() && units[children].value() >= texts.size()) return problem;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const size_t child = children ^ byte;
      if (units[child].label() != byte || seen[child]) continue;
      seen[child] = true;
      open.push_back(child);
    }
  }
  return "";
}

int byte_of(const SentencePieceModel::Piece& piece) {
  static constexpr std::string_view kDigits = "0123456789ABCDEF";
  const std::string& text = piece.text;
  if (piece.type != SentencePieceModel::PieceType::kByte) return -1;
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const size_t high = kDigits.find(text[3]);
  const size_t low = kDigits.find(text[4]);
  if (high == kDigits.npos || low == kDigits.npos) return -1;
  return static_cast<int>(high * 16 + low);
}

std::string surface_of(const std::string& piece) {
  constexpr std::string_view kSpace = SentencePieceModel::kSpaceSymbol;
  std::string surface;
  for (size_t at = 0; at < piece.size();) {
    if (piece.compare(at, kSpace.size(), kSpace) == 0) {
      surface += ' ';
      at += kSpace.size();
    } else {
      surface += piece[at++];
    }
  }
  return surface;
}

SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& name) {
  SentencePieceModel model;
  WireReader reader(bytes, name);
  for (WireReader::Field field; reader.next(field);) {
    if (field.type != Type::kBytes) continue;
    if (field.number == 1) model.pieces.push_back(read_piece(field.bytes, name));
    if (field.number == 2) read_trainer_spec(field.bytes, name, model);
    if (field.number == 3) read_normalizer_spec(field.bytes, name, model);
  }
  if (model.pieces.empty()) reader.fail();
  return model;
}

}  // namespace stablemask
