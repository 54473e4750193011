#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

/// Takes the bytes of a tensor from the first to the last, in pieces.
using ByteSink = std::function<void(const void* data, size_t bytes)>;

/// A tensor whose bytes are made while it is written, so that it is never in memory as a whole.
struct StreamedTensor {
  ElementType type = ElementType::kF32;
  std::vector<int64_t> shape;
  std::function<void(const ByteSink& write)> produce;  ///< writes bytes() bytes, row-major
  size_t bytes() const { return TensorView{type, shape, nullptr}.bytes(); }
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

/// The same for tensors that are made one after the other, in the map's order. Throws also what
/// `produce` throws.
FileDigest write_streamed_safetensors(const std::string& path,
                                      const std::map<std::string, StreamedTensor>& tensors,
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

/// A safetensors file whose tensors are read one by one; only its header is kept in memory. Checks
/// and errors are those of SafetensorsFile. The file is read, not mapped, so that one that is
/// shortened meanwhile is an error and not a signal.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::string& path, size_t max_header_bytes = 16u << 20);
  SafetensorsReader(SafetensorsReader&&) noexcept;
  SafetensorsReader& operator=(SafetensorsReader&&) noexcept;
  ~SafetensorsReader();

  const std::map<std::string, TensorView>& tensors() const;  ///< `data` is null
  /// Reads `bytes` bytes of a tensor from byte `offset` on; std::out_of_range beyond its end.
  void read(const std::string& name, uint64_t offset, void* data, size_t bytes) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Opens all files of a model that is split into several, by file name. `path` is the index file
/// `model.safetensors.index.json`: {"metadata": {…}, "weight_map": {tensor: file}}; the files are
/// in the same folder. src/io/safetensors_index.cpp lists the errors, each a CheckpointError with
/// its name.
std::map<std::string, SafetensorsFile> open_safetensors_index(const std::string& path);
std::map<std::string, SafetensorsReader> open_safetensors_readers(const std::string& path);

}  // namespace stablemask
