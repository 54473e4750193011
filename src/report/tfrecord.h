#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace stablemask {

/// CRC-32C (Castagnoli polynomial 0x1EDC6F41), as in RFC 3720, appendix B.4.
uint32_t crc32c(std::string_view bytes);

/// `payload` as one record of a TFRecord file: its length (8 bytes), the masked CRC-32C of these
/// 8 bytes, the payload, its masked CRC-32C; numbers are little-endian. A masked CRC is
/// rotate_right(crc, 15) + 0xA282EAD8.
std::string tfrecord(std::string_view payload);

/// Reads the records of a TFRecord file in order.
class TfrecordReader {
 public:
  /// `file`: the bytes of the whole file, which must outlive the reader and its results.
  explicit TfrecordReader(std::string_view file) : file_(file) {}

  /// The payload of the next record. nullopt at the end of the file, and at the first record that
  /// is incomplete or has another CRC.
  std::optional<std::string_view> next();
  /// The end of the last record that `next` returned.
  size_t offset() const { return offset_; }

 private:
  std::string_view file_;
  size_t offset_ = 0;
};

}  // namespace stablemask
