#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace stablemask {

class InputFile;

enum class ElementType { kF64, kF32, kF16, kBf16, kI64, kI32, kU8, kBool };
size_t element_size(ElementType type);
const char* element_name(ElementType type);  ///< "F32", "BF16", …

/// A contiguous row-major array in memory; not its owner.
struct TensorView {
  ElementType type = ElementType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  size_t bytes() const;  ///< CheckpointError for a negative dimension or more than 2^63 bytes
};

/// Size and SHA-256 of a file's content.
struct FileDigest {
  uint64_t bytes = 0;
  std::string sha256;  ///< lower-case hexadecimal
};

/// Writes a new safetensors file and fsyncs it. No temporary name and no rename: a checkpoint
/// renames its whole folder. Tensors follow each other in the map's order without gaps, the first
/// one at a multiple of 64 bytes. Throws CheckpointError for failed or short writes (with errno's
/// text), and for names and shapes that the reader refuses.
FileDigest write_safetensors(const std::string& path,
                             const std::map<std::string, TensorView>& tensors,
                             const std::map<std::string, std::string>& metadata = {});

/// A safetensors file read into memory. `open` checks all of the header; src/io/safetensors.cpp
/// lists the errors, each a CheckpointError with its name. The data is a copy, not a mapping, so a
/// later change of the file has no effect.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path, size_t max_header_bytes = 16u << 20);
  /// Of a file that is open already; `path` is for messages.
  static SafetensorsFile read(const InputFile& file, const std::string& path,
                              size_t max_header_bytes = 16u << 20);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::map<std::string, TensorView>& tensors()
      const;  ///< `data` may be unaligned: use memcpy
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct State;
  explicit SafetensorsFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Opens all files of a model that is split into several, by file name. `path` is the index file
/// `model.safetensors.index.json`: {"metadata": {…}, "weight_map": {tensor: file}}; the files are
/// in the same folder. src/io/safetensors_index.cpp lists the errors, each a CheckpointError with
/// its name.
std::map<std::string, SafetensorsFile> open_safetensors_index(const std::string& path);

}  // namespace stablemask
