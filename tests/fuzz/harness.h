#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/error.h"

namespace stablemask::fuzz {

// Every harness defines LLVMFuzzerTestOneInput. What ends the process is a finding: a sanitizer's
// report, a broken promise (`require`), and an exception other than the refusal that the function
// under test documents.

/// Separates the parts of an input that is text; no byte of UTF-8.
constexpr char kSeparator = '\xFF';

/// Prints `promise` and aborts unless it holds.
void require(bool holds, std::string_view promise);

/// At most `most` parts of an input, the last one with the rest. At least one.
std::vector<std::string_view> split(std::string_view text, size_t most = SIZE_MAX);

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A message is UTF-8 that a terminal can show: not empty, no control characters but line ends
/// between the errors of a config.
void require_message(std::string_view message, bool one_line);

/// Whether `action` succeeds. A refusal, thrown as `Refusal`, must have a readable message.
template <typename Refusal, typename Action>
bool accepted(Action action, bool one_line = true) {
  try {
    action();
    return true;
  } catch (const Refusal& refusal) {
    require_message(refusal.what(), one_line);
    return false;
  }
}

/// Numbers from the bytes of an input; 0 after its end.
class Numbers {
 public:
  explicit Numbers(std::string_view bytes) : bytes_(bytes) {}

  uint8_t byte();
  uint64_t integer(int bytes);  ///< of 1 to 8 bytes, little-endian
  bool chance() { return (byte() & 1) != 0; }
  bool empty() const { return bytes_.empty(); }
  std::string_view take(size_t size);
  std::string_view rest() { return take(bytes_.size()); }

 private:
  std::string_view bytes_;
};

/// A file without a name in any folder, read through a path of /proc.
class MemoryFile {
 public:
  MemoryFile();
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  void write(std::string_view content);  ///< replaces what it has
  void shorten(uint64_t size);
  const std::string& path() const { return path_; }

 private:
  int fd_ = -1;
  std::string path_;
};

/// A folder in memory (in $TMPDIR, otherwise in /dev/shm), removed when the process ends normally.
const std::string& scratch_folder();

void write_file(const std::string& path, std::string_view content);
std::string read_file(const std::string& path);

}  // namespace stablemask::fuzz
