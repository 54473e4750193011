#include "stablemask/base/input_stream.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"

namespace stablemask {

InputStream::InputStream(const std::string& path, ExitCode errors, const std::string& shown_as)
    : name_(!shown_as.empty() ? shown_as : (path == "-" ? "standard input" : path)),
      errors_(errors),
      owned_(path != "-") {
  // Without O_NONBLOCK the open of a FIFO would wait for its writer, deaf to signals.
  fd_ = owned_ ? retry_interrupted([&] {
    return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  })
               : STDIN_FILENO;
  if (fd_ < 0) throw_file_error(errors_, name_, "cannot be opened", errno);
  struct stat status {};
  if (::fstat(fd_, &status) == 0 && S_ISDIR(status.st_mode)) {
    if (owned_) ::close(fd_);
    throw_error(errors_, name_ + ": is a folder; name a file");
  }
}

InputStream::~InputStream() {
  if (owned_) ::close(fd_);
}

size_t InputStream::read(char* buffer, size_t size) {
  constexpr int kMilliseconds = 100;  // until a signal is noticed that comes just before poll
  while (true) {
    check_stop("reading text");
    pollfd waiting{fd_, POLLIN, 0};
    const int polled = ::poll(&waiting, 1, kMilliseconds);
    if (polled == 0 || (polled < 0 && errno == EINTR)) continue;
    const ssize_t count = ::read(fd_, buffer, size);
    if (count >= 0) return static_cast<size_t>(count);
    // EAGAIN: somebody else read what was there.
    if (errno != EINTR && errno != EAGAIN) {
      throw_file_error(errors_, name_, "cannot be read", errno);
    }
  }
}

std::string InputStream::rest(size_t limit) {
  constexpr size_t kPiece = size_t{1} << 16;
  std::string text;
  while (true) {
    const size_t old_size = text.size();
    text.resize(old_size + kPiece);
    const size_t count = read(text.data() + old_size, kPiece);
    text.resize(old_size + count);
    if (count == 0) return text;
    if (text.size() > limit) {
      throw_error(errors_, format("%s: is longer than %zu bytes", name_.c_str(), limit));
    }
  }
}

}  // namespace stablemask
