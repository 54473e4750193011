#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// The fields of a SentencePiece ModelProto that decoding needs and that decide whether it inverts
/// encoding. Read
/// from the protocol buffer wire format, with the defaults of sentencepiece_model.proto, so that no
/// generated header is needed.
struct SentencePieceModel {
  enum class PieceType { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  struct Piece {
    std::string text;
    PieceType type = PieceType::kNormal;
    float score = 0;
  };

  /// SentencePiece writes a space as U+2581.
  static constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";

  std::vector<Piece> pieces;

  // trainer_spec
  int32_t model_type = 1;  ///< 1 unigram, 2 bpe, 3 word, 4 char
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  int32_t unk_id = 0;
  int32_t bos_id = 1;
  int32_t eos_id = 2;
  std::string unk_surface = " \xE2\x81\x87 ";  ///< text of the unknown piece
  bool has_trainer_spec = false;

  // normalizer_spec
  std::string charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool has_normalizer_spec = false;
};

/// The byte of a byte piece, "<0x0A>", or -1.
int byte_of(const SentencePieceModel::Piece& piece);

/// The text that a piece stands for: its own with spaces in place of U+2581.
std::string surface_of(const std::string& piece);

/// "" or what is wrong with a precompiled_charsmap, which SentencePiece reads unchecked: a size, a
/// double-array trie (Darts) in units of 32 bits, and texts that its values point into.
std::string charsmap_problem(std::string_view charsmap);

/// Throws DataError, naming `name`, for bytes that are not a well-formed model. Safe for any bytes.
SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& name);

}  // namespace stablemask
