#include "src/io/temporary.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>

#include "src/io/file.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/io/checkpoint.h"

namespace stablemask {
namespace {

constexpr const char* kInfix = ".tmp-";

int lock(int fd, int operation) {
  return retry_interrupted([&] { return ::flock(fd, operation); });
}

}  // namespace

std::string temporary_name(const std::string& path) {
  return format("%s%s%d-%08x", path.c_str(), kInfix, static_cast<int>(::getpid()),
                std::random_device()());
}

bool is_temporary_name(const std::string& name, std::string& stem) {
  const size_t infix = name.find(kInfix);
  if (infix == std::string::npos) return false;
  stem = name.substr(0, infix);
  return true;
}

bool has_living_writer(const std::string& path) {
  const int fd =
      retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (fd < 0) return errno != ENOENT;
  // Any failure but "somebody holds it" means that locks do not work here: better leave it alone.
  const bool dead = lock(fd, LOCK_EX | LOCK_NB) == 0;
  ::close(fd);
  return !dead;
}

std::string parent_folder(const std::string& path) {
  const std::filesystem::path normal = std::filesystem::path(path).lexically_normal();
  const std::filesystem::path parent =
      (normal.has_filename() ? normal : normal.parent_path()).parent_path();
  return parent.empty() ? "." : parent.string();
}

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
  // Where locks do not work nobody else gets one either, and has_living_writer says yes.
  lock(fd_, LOCK_EX | LOCK_NB);
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
  sync_folder(parent_folder(final_path_));
}

void write_file_atomically(const std::string& path, const std::string& content) {
  const std::string temporary = temporary_name(path);
  try {
    DurableFile file(temporary);
    file.write(content);
    file.finish();
    if (retry_interrupted([&] { return ::rename(temporary.c_str(), path.c_str()); }) != 0) {
      fail_io(path, "cannot be replaced", errno);
    }
  } catch (const CheckpointError&) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_folder(parent_folder(path));
}

}  // namespace stablemask
