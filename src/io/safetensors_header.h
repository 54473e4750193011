#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/file.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

constexpr size_t kSafetensorsMaxNameBytes = 512;
constexpr size_t kSafetensorsMaxRank = 16;
constexpr size_t kSafetensorsMaxTensors = 1'000'000;
constexpr size_t kSafetensorsMaxHeaderBytes = size_t{16} << 20;
constexpr uint64_t kSafetensorsLengthBytes = 8;  ///< the header's length, before the header

/// A tensor's type, shape and byte range [begin, end), counted from the first byte after the
/// header.
struct SafetensorsEntry {
  ElementType type = ElementType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

/// Throws CheckpointError "PATH: bad safetensors file (NAME): DETAIL".
[[noreturn]] void fail_safetensors(const std::string& path, const char* name,
                                   const std::string& detail);

/// Parses the JSON text of a header and checks it in full against a data part of `data_bytes`;
/// `path` is for messages.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                           const std::string& path);

/// The reason why a tensor's name is refused ("is empty"); "" for a good name.
std::string safetensors_name_problem(std::string_view name);

std::optional<ElementType> parse_element_name(std::string_view name);

/// The checked header of a file and the offset of its data part.
struct SafetensorsLayout {
  SafetensorsHeader header;
  uint64_t data_offset = 0;
};
SafetensorsLayout read_safetensors_layout(const InputFile& file, const std::string& path,
                                          size_t max_header_bytes);

}  // namespace stablemask
