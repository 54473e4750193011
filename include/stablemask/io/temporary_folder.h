#pragma once

#include <string>

namespace stablemask {

/// A new folder named temporary_name(PATH) that `publish` renames to PATH; without `publish`, the
/// destructor removes it. Locked with flock while the object lives, so that other processes can
/// tell it from a folder that a killed process left (has_living_writer).
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& final_path);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  /// fsync, rename, fsync of the parent folder. A folder that PATH names already is exchanged for
  /// this one in one step; the destructor removes it.
  void publish();

 private:
  std::string final_path_;
  std::string path_;
  int fd_ = -1;
};

}  // namespace stablemask
