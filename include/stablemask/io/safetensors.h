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
  size_t bytes() const;  ///< CheckpointError for a negative dimension or more than 2^63 bytes
};

/// What a file holds, in short.
struct FileDigest {
  uint64_t bytes = 0;
  std::string sha256;  ///< lower-case hexadecimal
};

/// Writes a new file under its final name and fsyncs it; no temporary name, no rename (a checkpoint
/// folder does that as a whole). Tensors lie in the map's order, without gaps, and the first one
/// starts at a multiple of 64 bytes. Throws CheckpointError with errno's text on ENOSPC, EIO, short
/// write, and for what the reader would refuse (names, rank, `__metadata__` as a tensor).
FileDigest write_safetensors(const std::string& path,
                             const std::map<std::string, TensorView>& tensors,
                             const std::map<std::string, std::string>& metadata = {});

/// A file read into memory and checked in full before any entry is handed out; the list of what is
/// refused is in src/io/safetensors.cpp beside the reader. Throws CheckpointError, one named error
/// each. The bytes are a copy, not a mapping: what happens to the file afterwards (a mapping of a
/// file that shrinks would end the process by SIGBUS) does not matter.
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

/// The files of a model that others have split, by file name. `path` is its
/// `model.safetensors.index.json`: {"metadata": {…}, "weight_map": {tensor: file}}; the files lie
/// beside it. Refused, each a named CheckpointError: what is no such JSON, a key twice, a file name
/// with a folder in it, a tensor that is absent from its file or that the index does not mention.
std::map<std::string, SafetensorsFile> open_safetensors_index(const std::string& path);

}  // namespace stablemask
