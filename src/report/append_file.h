#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace stablemask {

/// A file that grows by whole records. A record that cannot be written, for example because the
/// disk is full, is left out; the file then ends with the record before it. One warning per object.
class AppendFile {
 public:
  /// Opens the existing file `path`. Throws CheckpointError.
  explicit AppendFile(const std::string& path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  /// `step` is for the warning.
  void append(std::string_view record, int64_t step);
  /// Returns when all records are on durable storage; a failure is a warning.
  void sync();

 private:
  void warn(const std::string& problem);
  bool remove_rest();

  std::string path_;
  int file_ = -1;
  int64_t size_ = 0;   ///< of the whole records
  bool torn_ = false;  ///< bytes of an incomplete record follow them
  bool warned_ = false;
};

}  // namespace stablemask
