#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>

#include "stablemask/base/sha256.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

/// Calls again as long as a signal interrupts.
template <typename Call>
auto retry_interrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// Throws CheckpointError "PATH: WHAT: REASON; HINT" for an errno.
[[noreturn]] void fail_io(const std::string& path, const char* what, int error);

/// A new file that is on disk, every byte, when `finish` returns; hashed on the way. Destroyed
/// without, it is closed and left to the one who removes the folder.
class DurableFile {
 public:
  /// Creates `path`, which must not exist.
  explicit DurableFile(const std::string& path);
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  void write(const void* data, size_t size);
  void write(const std::string& text) { write(text.data(), text.size()); }
  FileDigest finish();

 private:
  void write_through(const char* data, size_t size);

  std::string path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
  Sha256 hash_;
};

/// Makes what was created, renamed or removed in a folder survive a crash of the machine.
void sync_folder(const std::string& path);

/// A regular file, read at explicit offsets. A file that has become shorter than it was when it was
/// opened is a CheckpointError, never a crash.
class InputFile {
 public:
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  uint64_t size() const { return size_; }
  void read(uint64_t offset, void* data, size_t size) const;
  FileDigest digest() const;
  /// The whole file, of at most `limit` bytes.
  std::string text(uint64_t limit) const;

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

}  // namespace stablemask
