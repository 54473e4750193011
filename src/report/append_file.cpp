#include "src/report/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"

namespace stablemask {

AppendFile::AppendFile(const std::string& path) : path_(path) {
  file_ = retry_interrupted([&] { return ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC); });
  struct stat status {};
  if (file_ < 0 || ::fstat(file_, &status) != 0) {
    const int error = errno;
    if (file_ >= 0) ::close(file_);
    throw_file_error(ExitCode::kCheckpoint, path_, "cannot be opened", error);
  }
  size_ = status.st_size;
}

AppendFile::~AppendFile() { ::close(file_); }

void AppendFile::append(std::string_view record, int64_t step) {
  if (torn_ && !remove_rest()) return;  // after an incomplete record no reader would find this one
  for (std::string_view rest = record; !rest.empty();) {
    const ssize_t count =
        retry_interrupted([&] { return ::write(file_, rest.data(), rest.size()); });
    if (count <= 0) {
      const int error = count < 0 ? errno : ENOSPC;
      torn_ = rest.size() < record.size();
      if (torn_) remove_rest();
      return warn("step " + std::to_string(step) + " not recorded: " + std::strerror(error) +
                  (torn_ ? "; its last record is incomplete" : ""));
    }
    rest.remove_prefix(static_cast<size_t>(count));
  }
  size_ += static_cast<int64_t>(record.size());
}

void AppendFile::warn(const std::string& problem) {
  if (!warned_) log_warning(path_ + ": " + problem);
  warned_ = true;
}

bool AppendFile::remove_rest() {
  if (::ftruncate(file_, size_) == 0) torn_ = false;
  return !torn_;
}

void AppendFile::sync() {
  if (retry_interrupted([&] { return ::fsync(file_); }) == 0 || errno == EINVAL) return;
  warn(std::string("cannot be flushed to disk: ") + std::strerror(errno) +
       "; a power failure may take its last records");
}

}  // namespace stablemask
