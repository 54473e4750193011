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
  const ssize_t written =
      retry_interrupted([&] { return ::write(file_, record.data(), record.size()); });
  if (written == static_cast<ssize_t>(record.size())) {
    size_ += written;
    return;
  }
  const int error = written < 0 ? errno : ENOSPC;
  torn_ = written > 0;
  if (torn_) remove_rest();
  warn(step, error);
}

void AppendFile::warn(int64_t step, int error) {
  if (!warned_) {
    log_warning(path_ + ": step " + std::to_string(step) + " not recorded: " +
                std::strerror(error) + (torn_ ? "; its last record is incomplete" : ""));
  }
  warned_ = true;
}

bool AppendFile::remove_rest() {
  if (::ftruncate(file_, size_) == 0) torn_ = false;
  return !torn_;
}

void AppendFile::sync() { ::fsync(file_); }

}  // namespace stablemask
