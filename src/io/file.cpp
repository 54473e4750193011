#include "src/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask {
namespace {

// Small enough to be hashed and written while it is in the cache.
constexpr size_t kChunkBytes = size_t{1} << 20;

const char* hint(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; free some space or keep fewer checkpoints";
    case EFBIG:
      return "; the file size limit (ulimit -f) is too small";
    case EACCES:
    case EPERM:
    case EROFS:
      return "; check the permissions";
    case ENOENT:
    case ENOTDIR:
      return "; check the path";
    case EIO:
      return "; check the disk";
    default:
      return "";
  }
}

}  // namespace

void fail_io(const std::string& path, const char* what, int error) {
  throw CheckpointError(
      format("%s: %s: %s%s", path.c_str(), what, std::strerror(error), hint(error)));
}

DurableFile::DurableFile(const std::string& path) : path_(path) {
  fd_ = retry_interrupted(
      [&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
  if (fd_ < 0) fail_io(path_, "cannot be created", errno);
}

DurableFile::~DurableFile() {
  if (fd_ >= 0) ::close(fd_);
}

void DurableFile::write(const void* data, size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const size_t chunk = std::min(size, kChunkBytes);
    hash_.update(at, chunk);
    write_through(at, chunk);
    at += chunk;
    size -= chunk;
    bytes_ += chunk;
  }
}

void DurableFile::write_through(const char* data, size_t size) {
  while (size > 0) {
    const ssize_t count = retry_interrupted([&] { return ::write(fd_, data, size); });
    if (count <= 0) fail_io(path_, "cannot be written", count < 0 ? errno : EIO);
    data += count;
    size -= static_cast<size_t>(count);
  }
}

FileDigest DurableFile::finish() {
  // A failed fsync is final: the kernel may have dropped the dirty pages, so a second one that
  // succeeds proves nothing.
  if (retry_interrupted([&] { return ::fsync(fd_); }) != 0) {
    fail_io(path_, "cannot be flushed to disk", errno);
  }
  struct stat status {};
  if (::fstat(fd_, &status) != 0) fail_io(path_, "cannot be examined", errno);
  if (static_cast<uint64_t>(status.st_size) != bytes_) {
    throw CheckpointError(format("%s: short write: %llu of %llu bytes arrived; check the disk",
                                 path_.c_str(), static_cast<unsigned long long>(status.st_size),
                                 static_cast<unsigned long long>(bytes_)));
  }
  const int closed = ::close(fd_);
  fd_ = -1;
  // Network file systems report a full disk here. After EINTR the descriptor is gone all the same.
  if (closed != 0 && errno != EINTR) fail_io(path_, "cannot be closed", errno);
  return {bytes_, hash_.hex()};
}

void sync_folder(const std::string& path) {
  const int folder =
      retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (folder < 0) fail_io(path, "cannot be opened", errno);
  const int failed = retry_interrupted([&] { return ::fsync(folder); }) != 0 ? errno : 0;
  ::close(folder);
  // Some network file systems have no fsync of folders and say so with EINVAL.
  if (failed != 0 && failed != EINVAL) fail_io(path, "cannot be flushed to disk", failed);
}

InputFile::InputFile(const std::string& path) : path_(path) {
  // Without O_NONBLOCK the open of a named pipe would wait for its writer.
  fd_ = retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (fd_ < 0) fail_io(path_, "cannot be opened", errno);
  struct stat status {};
  const bool known = ::fstat(fd_, &status) == 0;
  const int error = errno;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(fd_);
    if (!known) fail_io(path_, "cannot be examined", error);
    throw CheckpointError(path_ + ": is not a regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::read(uint64_t offset, void* data, size_t size) const {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t count =
        retry_interrupted([&] { return ::pread(fd_, at, size, static_cast<off_t>(offset)); });
    if (count < 0) fail_io(path_, "cannot be read", errno);
    if (count == 0) {
      throw CheckpointError(
          format("%s: has shrunk to %llu bytes while it was read; another program "
                 "changed it",
                 path_.c_str(), static_cast<unsigned long long>(offset)));
    }
    at += count;
    offset += static_cast<uint64_t>(count);
    size -= static_cast<size_t>(count);
  }
}

FileDigest InputFile::digest() const {
  Sha256 hash;
  std::vector<char> buffer(std::min<uint64_t>(size_, kChunkBytes));
  for (uint64_t offset = 0; offset < size_;) {
    const size_t chunk = std::min<uint64_t>(size_ - offset, buffer.size());
    read(offset, buffer.data(), chunk);
    hash.update(buffer.data(), chunk);
    offset += chunk;
  }
  return {size_, hash.hex()};
}

std::string InputFile::text(uint64_t limit) const {
  if (size_ > limit) {
    throw CheckpointError(format("%s: is %llu bytes long; at most %llu were expected",
                                 path_.c_str(), static_cast<unsigned long long>(size_),
                                 static_cast<unsigned long long>(limit)));
  }
  std::string bytes(size_, '\0');
  read(0, bytes.data(), bytes.size());
  return bytes;
}

}  // namespace stablemask
