#include "src/report/tfrecord.h"

#include <array>

namespace stablemask {
namespace {

constexpr size_t kLengthBytes = 8, kCrcBytes = 4, kHeaderBytes = kLengthBytes + kCrcBytes;

constexpr std::array<uint32_t, 256> crc_table() {
  constexpr uint32_t kReversedPolynomial = 0x82F63B78;
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kReversedPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
}

void append_number(std::string& out, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) out += static_cast<char>((value >> (8 * i)) & 0xFF);
}

uint64_t number_in(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i > 0; --i) {
    value = (value << 8) | static_cast<unsigned char>(bytes[i - 1]);
  }
  return value;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = crc_table();
  uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes)
    crc = kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

std::string tfrecord(std::string_view payload) {
  std::string record;
  record.reserve(kHeaderBytes + payload.size() + kCrcBytes);
  append_number(record, payload.size(), kLengthBytes);
  append_number(record, masked_crc(record), kCrcBytes);
  record += payload;
  append_number(record, masked_crc(payload), kCrcBytes);
  return record;
}

std::optional<std::string_view> TfrecordReader::next() {
  const std::string_view rest = file_.substr(offset_);
  if (rest.size() < kHeaderBytes + kCrcBytes) return std::nullopt;
  const std::string_view length_bytes = rest.substr(0, kLengthBytes);
  if (number_in(rest.substr(kLengthBytes, kCrcBytes)) != masked_crc(length_bytes)) {
    return std::nullopt;
  }
  const uint64_t length = number_in(length_bytes);
  if (length > rest.size() - kHeaderBytes - kCrcBytes) return std::nullopt;
  const std::string_view payload = rest.substr(kHeaderBytes, length);
  if (number_in(rest.substr(kHeaderBytes + length, kCrcBytes)) != masked_crc(payload)) {
    return std::nullopt;
  }
  offset_ += kHeaderBytes + length + kCrcBytes;
  return payload;
}

}  // namespace stablemask
