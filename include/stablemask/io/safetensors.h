#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace stablemask {

enum class ElementType { kF64, kF32, kF16, kBf16, kI64, kI32, kU8, kBool };
size_t element_size(ElementType type);
const char* element_name(ElementType type);  ///< "F32", "BF16", …

/// A named, contiguous, row-major array in memory that somebody else owns.
struct TensorView {
  ElementType type = ElementType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  size_t bytes() const;
};

/// Writes the file with its final name's bytes fsynced; no temporary name, no rename (a checkpoint
/// folder does that as a whole). Tensors lie in the map's order, 64-byte aligned header. Throws
/// CheckpointError with errno's text on ENOSPC, EIO, short write.
void write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// A memory-mapped file, checked in full before any entry is handed out; the list of what is
/// refused is in src/io/safetensors.cpp beside the reader. Throws CheckpointError, one named error
/// each.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path, size_t max_header_bytes = 16u << 20);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::map<std::string, TensorView>& tensors() const;  ///< `data` may be misaligned: memcpy
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct State;
  explicit SafetensorsFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace stablemask
