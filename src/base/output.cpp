#include "stablemask/base/output.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/// The number of this process's descriptor that a path of link_target stands for; -1: none.
int own_descriptor(const std::string& target) {
  const std::filesystem::path path = target;
  struct stat folder {};
  struct stat own {};
  if (::stat(path.parent_path().c_str(), &folder) != 0 || ::stat("/proc/self/fd", &own) != 0 ||
      !same_file(folder, own)) {
    return -1;
  }
  const std::string name = path.filename();
  int number = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  return error == std::errc() && end == name.data() + name.size() ? number : -1;
}

/// Opens a named pipe for writing; waits for a reader until a stop signal comes.
int open_pipe(const std::string& path) {
  bool told = false;
  while (true) {
    const int fd =
        retry_interrupted([&] { return ::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC); });
    if (fd >= 0) {
      ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK);
      return fd;
    }
    if (errno != ENXIO) return fd;
    if (!told) log_info("stablemask: waiting for a reader of " + path);
    told = true;
    check_stop("waiting for a reader of a pipe");
    ::poll(nullptr, 0, 50);
  }
}

}  // namespace

OutputFile::OutputFile(const std::string& path, OutputContent content, ExitCode errors)
    : path_(path),
      errors_(errors),
      standard_output_(content == OutputContent::kText && path == "-") {
  if (standard_output_) return;
  const std::string target = link_target(path, errors);
  struct stat status {};
  const bool exists = ::stat(target.c_str(), &status) == 0;
  if (const int descriptor = own_descriptor(target); descriptor >= 0) {
    take_descriptor(descriptor, content);
  } else if (exists && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
    open_special(target, S_ISFIFO(status.st_mode), content);
  } else {
    require_replaceable(target);
  }
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

/// A descriptor's file may hold other text already: it is written from the current position on.
void OutputFile::take_descriptor(int descriptor, OutputContent content) {
  if (content == OutputContent::kPatched ||
      (content == OutputContent::kBytes && descriptor == STDOUT_FILENO)) {
    throw_error(errors_, path_ +
                             ": is an open descriptor, which this output cannot go to; name a "
                             "file");
  }
  const int flags = ::fcntl(descriptor, F_GETFL);
  if (flags < 0) throw_file_error(errors_, path_, "cannot be opened", errno);
  if ((flags & O_ACCMODE) == O_RDONLY) {
    throw_error(errors_, path_ + ": is open for reading only; name another output");
  }
  standard_output_ = descriptor == STDOUT_FILENO;
  if (standard_output_) return;
  fd_ = ::fcntl(descriptor, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (fd_ < 0) throw_file_error(errors_, path_, "cannot be opened", errno);
}

void OutputFile::open_special(const std::string& target, bool pipe, OutputContent content) {
  const bool patched = content == OutputContent::kPatched;
  if (!pipe) {
    fd_ =
        retry_interrupted([&] { return ::open(target.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY); });
  } else if (!patched) {
    fd_ = open_pipe(target);
  }
  if (patched && (pipe || (fd_ >= 0 && ::lseek(fd_, 0, SEEK_CUR) < 0))) {
    if (fd_ >= 0) ::close(fd_);
    throw_error(errors_, path_ +
                             ": cannot be positioned, and the start of this output is written "
                             "last; name a file");
  }
  if (fd_ < 0) throw_file_error(errors_, path_, "cannot be opened", errno);
}

void OutputFile::require_replaceable(const std::string& target) const {
  struct stat status {};
  if (::stat(target.c_str(), &status) == 0) {
    struct stat shown {};
    if (::fstat(STDOUT_FILENO, &shown) == 0 && same_file(status, shown)) {
      throw_error(errors_, path_ + ": is where standard output goes; name another file");
    }
    if (::access(target.c_str(), W_OK) != 0) {
      throw_file_error(errors_, path_, "cannot be replaced", errno);
    }
  }
  const AtomicFile probe(path_, errors_);
}

AtomicFile& OutputFile::regular() {
  if (!file_) file_ = std::make_unique<AtomicFile>(path_, errors_);
  return *file_;
}

void OutputFile::write(const void* data, size_t size) {
  if (standard_output_) {
    std::fwrite(data, 1, size, stdout);
  } else if (fd_ >= 0) {
    write_all(fd_, data, size, path_, errors_);
  } else {
    regular().write(data, size);
  }
}

void OutputFile::write_at(uint64_t offset, const void* data, size_t size) {
  if (fd_ >= 0) {
    write_all_at(fd_, offset, data, size, path_, errors_);
  } else {
    regular().write_at(offset, data, size);
  }
}

void OutputFile::commit() {
  if (standard_output_) return;
  if (fd_ < 0) return regular().commit();
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0 && errno != EINTR) throw_file_error(errors_, path_, "cannot be closed", errno);
}

void open_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) >= 0) continue;
    // The wrong direction: a text that nobody sends, or a result that nobody gets, is an error. The
    // lowest free number is this one.
    const int flags = stream == STDIN_FILENO ? O_WRONLY : O_RDONLY;
    if (::open("/dev/null", flags) != stream) std::_Exit(static_cast<int>(ExitCode::kInternal));
  }
}

}  // namespace stablemask
