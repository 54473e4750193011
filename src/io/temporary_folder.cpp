#include "stablemask/io/temporary_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "src/io/file.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"

namespace stablemask {

TemporaryFolder::TemporaryFolder(const std::string& final_path)
    : final_path_(final_path), path_(temporary_name(final_path)) {
  if (retry_interrupted([&] { return ::mkdir(path_.c_str(), 0777); }) != 0) {
    fail_io(path_, "cannot be created", errno);
  }
  fd_ =
      retry_interrupted([&] { return ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (fd_ < 0) {
    const int error = errno;
    ::rmdir(path_.c_str());
    fail_io(path_, "cannot be opened", error);
  }
  try_lock(fd_);  // a root has one writer, so nobody holds it
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
  if (error) log_warning(path_ + ": cannot be removed: " + error.message());
  ::close(fd_);
}

void TemporaryFolder::publish() {
  if (retry_interrupted([&] { return ::fsync(fd_); }) != 0 && errno != EINVAL) {
    fail_io(path_, "cannot be flushed to disk", errno);
  }
  const char* from = path_.c_str();
  const char* to = final_path_.c_str();
  int failed = retry_interrupted([&] { return ::rename(from, to); }) != 0 ? errno : 0;
  if (failed == ENOTEMPTY || failed == EEXIST) {
    const auto exchange = [&] {
      return ::renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE);
    };
    failed = retry_interrupted(exchange) != 0 ? errno : 0;
    if (failed == EINVAL || failed == ENOSYS) {
      throw CheckpointError(final_path_ +
                            ": exists already, and this file system cannot exchange "
                            "two folders; move it away first");
    }
  }
  if (failed != 0) fail_io(final_path_, "cannot be renamed into place", failed);
  sync_folder(parent_folder(final_path_), ExitCode::kCheckpoint);
}

}  // namespace stablemask
