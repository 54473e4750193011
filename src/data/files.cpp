#include "src/data/files.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

std::string parent_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

const char* hint(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; free some space and run it again";
    case EFBIG:
      return "; the file size limit (ulimit -f) is too small";
    case ENOENT:
      return "; check the path";
    case EACCES:
    case EPERM:
    case EROFS:
      return "; check the permissions";
    default:
      return "";
  }
}

int open_for_reading(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const int error = errno;
  struct stat status {};
  if (fd < 0) {
    throw DataError("cannot open " + path + ": " + std::strerror(error) + hint(error));
  }
  if (::fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
    ::close(fd);
    throw DataError("cannot read " + path + ": it is a folder; name a file");
  }
  return fd;
}

}  // namespace

OutputFile::OutputFile(const std::string& path)
    : path_(path), temporary_(path + ".tmp-" + std::to_string(::getpid())) {
  if (path.empty() || path == "-")
    throw DataError("the output must be a file, not \"" + path + "\"");
  if (std::filesystem::is_directory(path)) {
    throw DataError("cannot write " + path + ": it is a folder; name a file");
  }
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("cannot create", errno);
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void OutputFile::fail(const char* what, int error) {
  throw DataError(format("%s %s: %s%s", what, path_.c_str(), std::strerror(error), hint(error)));
}

void OutputFile::write(const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd_, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail("cannot write", written < 0 ? errno : EIO);
    at += written;
    size -= static_cast<size_t>(written);
  }
}

void OutputFile::write_at(uint64_t offset, const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::pwrite(fd_, at, size, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail("cannot write", written < 0 ? errno : EIO);
    at += written;
    offset += static_cast<uint64_t>(written);
    size -= static_cast<size_t>(written);
  }
}

void OutputFile::commit() {
  if (::fsync(fd_) != 0) fail("cannot write", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot rename to", errno);
  ::close(fd_);
  fd_ = -1;
  // Without this a crash of the machine may undo the rename.
  const int folder = ::open(parent_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) fail("cannot open the folder of", errno);
  const int failed = ::fsync(folder) != 0 ? errno : 0;
  ::close(folder);
  if (failed && failed != EINVAL) fail("cannot fsync the folder of", failed);
}

LineChunkReader::LineChunkReader(const std::string& path, size_t chunk_bytes)
    : name_(path == "-" ? "standard input" : path), chunk_bytes_(std::max<size_t>(chunk_bytes, 1)) {
  fd_ = path == "-" ? STDIN_FILENO : open_for_reading(path);
}

LineChunkReader::~LineChunkReader() {
  if (fd_ > STDIN_FILENO) ::close(fd_);
}

size_t LineChunkReader::read_some(char* buffer, size_t size) {
  while (true) {
    check_stop("reading text");
    // A silent pipe must not keep a stop signal waiting.
    pollfd waiting{fd_, POLLIN, 0};
    const int polled = ::poll(&waiting, 1, 200);
    if (polled == 0 || (polled < 0 && errno == EINTR)) continue;
    const ssize_t count = ::read(fd_, buffer, size);
    if (count >= 0) return static_cast<size_t>(count);
    if (errno != EINTR) throw DataError("cannot read " + name_ + ": " + std::strerror(errno));
  }
}

bool LineChunkReader::next(std::string& chunk) {
  chunk = std::move(rest_);
  rest_.clear();
  size_t searched = 0;  // no line end before this offset
  while (!end_) {
    if (chunk.size() >= chunk_bytes_) {
      const size_t line_end = std::string_view(chunk).substr(searched).rfind('\n');
      if (line_end != std::string_view::npos) {
        rest_ = chunk.substr(searched + line_end + 1);
        chunk.resize(searched + line_end + 1);
        return true;
      }
      searched = chunk.size();
      if (chunk.size() > kMaxLineBytes) {
        throw DataError(name_ + format(": a line is longer than %zu MiB; break it into lines",
                                       kMaxLineBytes >> 20));
      }
    }
    const size_t old_size = chunk.size();
    chunk.resize(old_size + chunk_bytes_);
    const size_t count = read_some(chunk.data() + old_size, chunk_bytes_);
    chunk.resize(old_size + count);
    end_ = count == 0;
  }
  return !chunk.empty();
}

bool take_line(std::string_view& text, std::string_view& line, bool& terminated) {
  if (text.empty()) return false;
  const size_t end = text.find('\n');
  terminated = end != std::string_view::npos;
  line = text.substr(0, end);
  text.remove_prefix(terminated ? end + 1 : text.size());
  return true;
}

std::string read_small_file(const std::string& path, size_t limit) {
  const int fd = open_for_reading(path);
  std::string bytes;
  char buffer[1 << 16];
  ssize_t count = 0;
  while ((count = ::read(fd, buffer, sizeof(buffer))) != 0) {
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 || bytes.size() + static_cast<size_t>(count) > limit) break;
    bytes.append(buffer, static_cast<size_t>(count));
  }
  const int error = errno;
  ::close(fd);
  if (count < 0) throw DataError("cannot read " + path + ": " + std::strerror(error));
  if (count > 0) throw DataError(path + format(" is larger than %zu MiB", limit >> 20));
  return bytes;
}

}  // namespace stablemask
