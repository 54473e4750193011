#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "stablemask/base/file.h"
#include "stablemask/base/sha256.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

/// Throws CheckpointError "PATH: WHAT: REASON; HINT" for an errno.
[[noreturn]] inline void fail_io(const std::string& path, const char* what, int error) {
  throw_file_error(ExitCode::kCheckpoint, path, what, error);
}

/// A DurableFile whose content is hashed while it is written.
class HashedFile {
 public:
  explicit HashedFile(const std::string& path) : file_(path, ExitCode::kCheckpoint) {}

  void write(const void* data, size_t size);
  void write(const std::string& text) { write(text.data(), text.size()); }
  FileDigest finish();

 private:
  DurableFile file_;
  uint64_t bytes_ = 0;
  Sha256 hash_;
};

/// Reads a whole file for its size and hash. `read_bytes` gets the size of each block that was
/// read.
FileDigest digest_of(const InputFile& file,
                     const std::function<void(uint64_t bytes)>& read_bytes = {});

}  // namespace stablemask
