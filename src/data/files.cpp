#include "src/data/files.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

int open_for_reading(const std::string& path) {
  const int fd = retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); });
  if (fd < 0) throw_file_error(ExitCode::kData, path, "cannot be opened", errno);
  struct stat status {};
  if (::fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
    ::close(fd);
    throw DataError(path + ": is a folder; name a file");
  }
  return fd;
}

}  // namespace

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
    if (errno != EINTR) throw_file_error(ExitCode::kData, name_, "cannot be read", errno);
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
  if (count < 0) throw_file_error(ExitCode::kData, path, "cannot be read", error);
  if (count > 0) throw DataError(path + format(": is larger than %zu MiB", limit >> 20));
  return bytes;
}

}  // namespace stablemask
