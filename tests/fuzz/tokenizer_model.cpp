// Field numbers: see src/data/sentencepiece_model.cpp.
#include "tests/fuzz/tokenizer_model.h"

#include <cstdint>
#include <cstring>

#include "stablemask/base/log.h"

namespace stablemask::fuzz {
namespace {

enum Type { kNormal = 1, kUnknown, kControl, kUserDefined, kByte = 6 };

void put_varint(std::string& bytes, uint64_t value) {
  for (; value >= 128; value >>= 7) bytes += static_cast<char>(value | 128);
  bytes += static_cast<char>(value);
}

void put_number(std::string& bytes, int field, uint64_t value) {
  put_varint(bytes, static_cast<uint64_t>(field) << 3);
  put_varint(bytes, value);
}

void put_bytes(std::string& bytes, int field, const std::string& value) {
  put_varint(bytes, static_cast<uint64_t>(field) << 3 | 2);
  put_varint(bytes, value.size());
  bytes += value;
}

void put_piece(std::string& model, const std::string& text, float score, Type type) {
  std::string piece;
  put_bytes(piece, 1, text);
  piece += '\x15';  // field 2, four bytes
  piece.append(reinterpret_cast<const char*>(&score), sizeof score);
  put_number(piece, 3, type);
  put_bytes(model, 1, piece);
}

std::string make_model() {
  std::string model;
  put_piece(model, "<unknown>", 0, kUnknown);
  put_piece(model, "</s>", 0, kControl);
  put_piece(model, "<unk>", 0, kUserDefined);
  for (int byte = 0; byte < 256; ++byte) {
    put_piece(model, format("<0x%02X>", static_cast<unsigned>(byte)), 0, kByte);
  }
  float score = 0;
  for (const char* text : {"th", "the", "\xE2\x96\x81the", "er", "\xE2\x96\x81=", "\xC3\xA9t",
                           "\xE2\x96\x81", "t", "h", "e", "r", "=", "a", "\xC3\xA9"}) {
    put_piece(model, text, --score, kNormal);
  }
  std::string trainer;
  put_number(trainer, 3, 2);              // BPE
  put_number(trainer, 35, 1);             // byte fallback
  put_number(trainer, 40, 0);             // unknown
  put_number(trainer, 41, ~uint64_t{0});  // no beginning of sentence
  put_number(trainer, 42, 1);             // end of sentence
  put_number(trainer, 43, ~uint64_t{0});  // no padding
  put_bytes(trainer, 45, "<unknown>");
  put_bytes(model, 2, trainer);
  std::string normalizer;
  put_bytes(normalizer, 1, "identity");
  put_number(normalizer, 3, 0);
  put_number(normalizer, 4, 0);
  put_number(normalizer, 5, 1);
  put_bytes(model, 3, normalizer);
  return model;
}

}  // namespace

const std::string& sound_model() {
  static const std::string model = make_model();
  return model;
}

}  // namespace stablemask::fuzz
