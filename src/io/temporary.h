#pragma once

#include <string>

namespace stablemask {

/// A folder `PATH.tmp-<pid>-<random>` that becomes PATH as a whole, or goes away with this object.
/// It is locked as long as the object lives, so that others can tell it from what a dead writer
/// left.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& final_path);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  /// Flushes the folder, gives it its final name and flushes the parent. What had that name takes
  /// the temporary one in the same instant, and goes away with this object.
  void publish();

 private:
  std::string final_path_;
  std::string path_;
  int fd_ = -1;
};

/// A free name for what is on its way to `path`, or from it to nowhere.
std::string temporary_name(const std::string& path);

/// Whether `name` was made by temporary_name; then `stem` is the name it was made for.
bool is_temporary_name(const std::string& name, std::string& stem);

/// Whether a process holds the lock of a temporary file or folder.
bool has_living_writer(const std::string& path);

/// The folder that `path` lies in.
std::string parent_folder(const std::string& path);

}  // namespace stablemask
