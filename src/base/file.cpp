#include "stablemask/base/file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>

#include "stablemask/base/log.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kInfix = ".tmp-";
constexpr size_t kRandomDigits = 16;
constexpr int kMaxAttempts = 16;

const char* hint(ExitCode errors, int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return errors == ExitCode::kCheckpoint ? "; free some space or keep fewer checkpoints"
                                             : "; free some space and run it again";
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

/// A rename would replace a device or a pipe by a file, and fail on a folder only after all the
/// work. `target`: link_target(path).
void require_replaceable(const std::string& path, const std::string& target, ExitCode errors) {
  if (path.empty() || path == "-") {
    throw_error(errors, "the output must be a file, not \"" + path + "\"");
  }
  struct stat status {};
  if (::lstat(target.c_str(), &status) != 0 || S_ISREG(status.st_mode)) return;
  throw_error(errors, path + (S_ISDIR(status.st_mode) ? ": is a folder; name a file"
                                                      : ": is not a regular file; name another"));
}

/// Whether `name` is what temporary_name makes of `stem`.
bool is_temporary_name_of(const std::string& name, const std::string& stem) {
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (name.size() != stem.size() + kInfix.size() + kRandomDigits) return false;
  return name.starts_with(stem) && name.compare(stem.size(), kInfix.size(), kInfix) == 0 &&
         std::all_of(name.end() - kRandomDigits, name.end(), is_hex);
}

/// Removes a regular file unless a process holds its lock. Holds the lock during the removal: a
/// writer that has created the file and not yet locked it finds out (AtomicFile::create_temporary).
void remove_if_unlocked(const std::string& path) {
  const int fd = retry_interrupted(
      [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW); });
  if (fd < 0) return;
  struct stat status {};
  if (::fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
      retry_interrupted([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }) == 0 &&
      ::unlink(path.c_str()) != 0 && errno != ENOENT) {
    log_warning(path + ": left by a killed process, cannot be removed: " + std::strerror(errno));
  }
  ::close(fd);
}

/// Unlike parent_folder without a change to the path: "link/../file" stays where the system finds
/// it.
std::string folder_of(const std::string& file) {
  const std::string folder = fs::path(file).parent_path().string();
  return folder.empty() ? "." : folder;
}

void remove_leftovers_of(const std::string& path) {
  const std::string stem = fs::path(path).filename().string();
  std::error_code error;  // a folder that cannot be listed may still take a file
  fs::directory_iterator entry(folder_of(path), error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    if (is_temporary_name_of(entry->path().filename().string(), stem)) {
      remove_if_unlocked(entry->path().string());
    }
  }
}

FileStamps stamps_of(const struct stat& status) {
  return {status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec, status.st_ctim.tv_sec,
          status.st_ctim.tv_nsec};
}

}  // namespace

void throw_error(ExitCode code, const std::string& message) {
  switch (code) {
    case ExitCode::kData:
      throw DataError(message);
    case ExitCode::kCheckpoint:
      throw CheckpointError(message);
    case ExitCode::kConfig:
      throw ConfigError(message);
    default:
      throw Error(code, message);
  }
}

void throw_file_error(ExitCode errors, const std::string& path, const char* what, int error) {
  throw_error(errors, path + ": " + what + ": " + std::strerror(error) + hint(errors, error));
}

void write_all(int fd, const void* data, size_t size, const std::string& name, ExitCode errors) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = retry_interrupted([&] { return ::write(fd, at, size); });
    if (count <= 0) throw_file_error(errors, name, "cannot be written", count < 0 ? errno : EIO);
    at += count;
    size -= static_cast<size_t>(count);
  }
}

void write_all_at(int fd, uint64_t offset, const void* data, size_t size, const std::string& name,
                  ExitCode errors) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count =
        retry_interrupted([&] { return ::pwrite(fd, at, size, static_cast<off_t>(offset)); });
    if (count <= 0) throw_file_error(errors, name, "cannot be written", count < 0 ? errno : EIO);
    at += count;
    offset += static_cast<uint64_t>(count);
    size -= static_cast<size_t>(count);
  }
}

DurableFile::DurableFile(const std::string& path, ExitCode errors, const std::string& shown_as)
    : name_(shown_as.empty() ? path : shown_as), errors_(errors) {
  fd_ = retry_interrupted([&] {
    return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
  });
  if (fd_ < 0) throw_file_error(errors_, name_, "cannot be created", errno);
}

DurableFile::~DurableFile() {
  if (fd_ >= 0) ::close(fd_);
}

void DurableFile::write(const void* data, size_t size) {
  write_all(fd_, data, size, name_, errors_);
  bytes_ += size;
}

void DurableFile::write_at(uint64_t offset, const void* data, size_t size) {
  write_all_at(fd_, offset, data, size, name_, errors_);
}

void DurableFile::finish() {
  // A failed fsync is final: the kernel may have dropped the dirty pages, so a second one that
  // succeeds proves nothing.
  if (retry_interrupted([&] { return ::fsync(fd_); }) != 0) {
    throw_file_error(errors_, name_, "cannot be flushed to disk", errno);
  }
  struct stat status {};
  if (::fstat(fd_, &status) != 0) throw_file_error(errors_, name_, "cannot be examined", errno);
  if (static_cast<uint64_t>(status.st_size) != bytes_) {
    throw_error(errors_, format("%s: short write: %llu of %llu bytes arrived; check the disk",
                                name_.c_str(), static_cast<unsigned long long>(status.st_size),
                                static_cast<unsigned long long>(bytes_)));
  }
  const int closed = ::close(fd_);
  fd_ = -1;
  // Network file systems report a full disk here. After EINTR the descriptor is gone all the same.
  if (closed != 0 && errno != EINTR) throw_file_error(errors_, name_, "cannot be closed", errno);
}

AtomicFile::AtomicFile(const std::string& path, ExitCode errors)
    : path_(path), errors_(errors), target_(link_target(path, errors)) {
  require_replaceable(path, target_, errors);
  remove_leftovers_of(target_);
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    if (create_temporary()) return;
  }
  throw_error(errors, path + ": cannot be created: another process removes its temporary file");
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) discard();
}

/// False when a process that looked for leftovers removed the file before it was locked.
bool AtomicFile::create_temporary() {
  temporary_ = temporary_name(target_);
  file_ = std::make_unique<DurableFile>(temporary_, errors_, path_);
  lock_ = ::fcntl(file_->descriptor(), F_DUPFD_CLOEXEC, 0);
  const int error = errno;
  struct stat status {};
  if (lock_ >= 0 && try_lock(lock_) && ::fstat(lock_, &status) == 0 && status.st_nlink > 0) {
    return true;
  }
  const bool no_descriptor = lock_ < 0;
  discard();
  if (no_descriptor) throw_file_error(errors_, path_, "cannot be created", error);
  return false;
}

void AtomicFile::discard() {
  file_.reset();
  ::unlink(temporary_.c_str());
  temporary_.clear();
  if (lock_ >= 0) ::close(lock_);
  lock_ = -1;
}

void AtomicFile::commit() {
  file_->finish();
  if (retry_interrupted([&] { return ::rename(temporary_.c_str(), target_.c_str()); }) != 0) {
    throw_file_error(errors_, path_, "cannot be replaced", errno);
  }
  temporary_.clear();
  ::close(lock_);
  lock_ = -1;
  sync_folder(folder_of(target_), errors_);
}

void write_file_atomically(const std::string& path, std::string_view content, ExitCode errors) {
  AtomicFile file(path, errors);
  file.write(content.data(), content.size());
  file.commit();
}

std::string link_target(const std::string& path, ExitCode errors) {
  constexpr int kMostLinks = 40;  // as in the kernel
  std::string target = path;
  for (int links = 0; links <= kMostLinks; ++links) {
    struct stat status {};
    if (::lstat(target.c_str(), &status) != 0 || !S_ISLNK(status.st_mode)) return target;
    const std::string folder = folder_of(target);
    struct statfs system {};
    if (::statfs(folder.c_str(), &system) == 0 && system.f_type == PROC_SUPER_MAGIC) return target;
    std::error_code error;
    const fs::path next = fs::read_symlink(target, error);
    if (error) throw_file_error(errors, path, "cannot be followed", error.value());
    target = next.is_absolute() ? next.string() : folder + "/" + next.string();
  }
  throw_file_error(errors, path, "cannot be followed", ELOOP);
}

void require_other_file(const std::string& output, const std::vector<std::string>& inputs) {
  struct stat written {};
  const bool shown = output == "-";
  const int known = shown ? ::fstat(STDOUT_FILENO, &written) : ::stat(output.c_str(), &written);
  if (known != 0 || !S_ISREG(written.st_mode)) return;
  for (const std::string& input : inputs) {
    struct stat read {};
    const int found = input == "-" ? ::fstat(STDIN_FILENO, &read) : ::stat(input.c_str(), &read);
    if (found != 0 || read.st_dev != written.st_dev || read.st_ino != written.st_ino) continue;
    throw ConfigError(
        (shown ? std::string("standard output") : output) + ": is the file that is read as " +
        (input == "-" ? std::string("standard input") : input) +
        (shown ? "; send it elsewhere" : ", which it would replace; name another output"));
  }
}

std::vector<std::string> create_folders(const std::string& path, ExitCode errors) {
  std::vector<std::string> missing;
  std::error_code error;
  for (fs::path folder = path; !folder.empty() && !fs::exists(folder, error);
       folder = folder.parent_path()) {
    if (folder.has_filename()) missing.push_back(folder.string());  // not "a/" of "a/b" twice
  }
  for (auto folder = missing.rbegin(); folder != missing.rend(); ++folder) {
    const int failed = retry_interrupted([&] { return ::mkdir(folder->c_str(), 0777); });
    if (failed != 0 && errno != EEXIST) throw_file_error(errors, path, "cannot be created", errno);
    sync_folder(folder_of(*folder), errors);
  }
  if (!fs::is_directory(path, error)) throw_file_error(errors, path, "cannot be created", ENOTDIR);
  return missing;
}

std::optional<uint64_t> free_space(const std::string& path) {
  std::error_code error;
  fs::path folder = fs::absolute(path, error);
  while (!fs::exists(folder, error) && folder != folder.parent_path()) {
    folder = folder.parent_path();
  }
  struct statvfs status {};
  // Some file systems do not report their size.
  if (::statvfs(folder.c_str(), &status) != 0 || status.f_blocks == 0) return std::nullopt;
  return uint64_t{status.f_bavail} * status.f_frsize;
}

void sync_folder(const std::string& path, ExitCode errors) {
  const int folder =
      retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (folder < 0) throw_file_error(errors, path, "cannot be opened", errno);
  const int failed = retry_interrupted([&] { return ::fsync(folder); }) != 0 ? errno : 0;
  ::close(folder);
  // Some network file systems have no fsync of folders and say so with EINVAL.
  if (failed != 0 && failed != EINVAL) {
    throw_file_error(errors, path, "cannot be flushed to disk", failed);
  }
}

InputFile::InputFile(const std::string& path, ExitCode errors) : path_(path), errors_(errors) {
  // Without O_NONBLOCK the open of a named pipe would wait for its writer.
  fd_ = retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (fd_ < 0) throw_file_error(errors_, path_, "cannot be opened", errno);
  struct stat status {};
  const bool known = ::fstat(fd_, &status) == 0;
  const int error = errno;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(fd_);
    if (!known) throw_file_error(errors_, path_, "cannot be examined", error);
    throw_error(errors_, path_ + ": is not a regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
  stamps_ = stamps_of(status);
}

bool InputFile::is_named() const {
  struct stat open {};
  struct stat named {};
  return ::fstat(fd_, &open) == 0 && ::stat(path_.c_str(), &named) == 0 &&
         named.st_dev == open.st_dev && named.st_ino == open.st_ino;
}

FileStamps InputFile::stamps() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) throw_file_error(errors_, path_, "cannot be examined", errno);
  return stamps_of(status);
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::read(uint64_t offset, void* data, size_t size) const {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t count =
        retry_interrupted([&] { return ::pread(fd_, at, size, static_cast<off_t>(offset)); });
    if (count < 0) throw_file_error(errors_, path_, "cannot be read", errno);
    if (count == 0) {
      throw_error(errors_,
                  format("%s: was shortened while in use (it had %llu bytes when it was opened); "
                         "restore the file and run again",
                         path_.c_str(), static_cast<unsigned long long>(size_)));
    }
    at += count;
    offset += static_cast<uint64_t>(count);
    size -= static_cast<size_t>(count);
  }
}

std::string InputFile::text(uint64_t limit) const {
  if (size_ > limit) {
    throw_error(errors_, format("%s: is %llu bytes long; at most %llu were expected", path_.c_str(),
                                static_cast<unsigned long long>(size_),
                                static_cast<unsigned long long>(limit)));
  }
  std::string bytes(size_, '\0');
  read(0, bytes.data(), bytes.size());
  return bytes;
}

std::string temporary_name(const std::string& path) {
  std::random_device random;
  const unsigned high = random();
  const unsigned low = random();
  return format("%s%s%08x%08x", path.c_str(), std::string(kInfix).c_str(), high, low);
}

bool is_temporary_name(const std::string& name, std::string& stem) {
  const size_t infix = name.rfind(kInfix);
  if (infix == std::string::npos) return false;
  stem = name.substr(0, infix);
  return true;
}

bool try_lock(int fd) {
  return retry_interrupted([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }) == 0 ||
         errno != EWOULDBLOCK;
}

bool has_living_writer(const std::string& path) {
  const int fd =
      retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (fd < 0) return errno != ENOENT;
  // Any failure but "somebody holds it" means that locks do not work here: better leave it alone.
  const bool dead = retry_interrupted([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }) == 0;
  ::close(fd);
  return !dead;
}

std::string parent_folder(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  const fs::path parent = (normal.has_filename() ? normal : normal.parent_path()).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace stablemask
