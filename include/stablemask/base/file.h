#pragma once

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/error.h"

namespace stablemask {

// Files that are complete or absent after a crash. Failures are the Error that `errors` selects,
// "PATH: WHAT: REASON; HINT"; no system call's failure passes unreported, EINTR is retried.

/// Repeats a system call while a signal interrupts it.
template <typename Call>
auto retry_interrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// Throws DataError for kData, CheckpointError for kCheckpoint, ConfigError for kConfig;
/// Error(code) for every other code.
[[noreturn]] void throw_error(ExitCode code, const std::string& message);

/// Throws throw_error(errors, "PATH: WHAT: REASON; HINT") for an errno value.
[[noreturn]] void throw_file_error(ExitCode errors, const std::string& path, const char* what,
                                   int error);

/// Writes all of `size` bytes, at the descriptor's position or at `offset`; `name` is for messages.
void write_all(int fd, const void* data, size_t size, const std::string& name, ExitCode errors);
void write_all_at(int fd, uint64_t offset, const void* data, size_t size, const std::string& name,
                  ExitCode errors);

/// A new file, complete on disk when `finish` returns. Destroyed without `finish`, it is closed and
/// stays where it is: removing it is left to the caller.
class DurableFile {
 public:
  /// Creates `path` with O_EXCL: a file or symbolic link of that name is an error. Messages name
  /// `shown_as` instead of `path` when it is not empty.
  DurableFile(const std::string& path, ExitCode errors, const std::string& shown_as = "");
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  void write(const void* data, size_t size);
  /// Overwrites bytes that `write` has written.
  void write_at(uint64_t offset, const void* data, size_t size);
  /// fsync and close; an error also when the file is shorter or longer than what was written.
  void finish();
  int descriptor() const { return fd_; }  ///< -1 after `finish`

 private:
  std::string name_;
  ExitCode errors_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
};

/// Replaces the file `path` in one step when `commit` is called: writes to a new file in the same
/// folder (`path`.tmp-<16 hex digits>, random, created with O_EXCL, locked with flock while the
/// object lives), then fsync, rename, fsync of the folder. A symbolic link stays: the file that it
/// leads to is replaced, in that file's folder. Destroyed without `commit`, it removes the
/// temporary file. The constructor removes unlocked temporary files of the same `path`, which
/// killed processes left. Two writers of one path do not disturb each other; the last commit
/// counts. Anything but a regular file at `path` is refused.
class AtomicFile {
 public:
  AtomicFile(const std::string& path, ExitCode errors);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size) { file_->write(data, size); }
  void write_at(uint64_t offset, const void* data, size_t size) {
    file_->write_at(offset, data, size);
  }
  void commit();
  const std::string& path() const { return path_; }

 private:
  bool create_temporary();
  void discard();

  std::string path_;
  ExitCode errors_;
  std::string target_;  // `path_` with symbolic links followed
  std::string temporary_;
  std::unique_ptr<DurableFile> file_;
  int lock_ = -1;  // held until after the rename
};

/// Replaces `path` by `content` through an AtomicFile.
void write_file_atomically(const std::string& path, std::string_view content,
                           ExitCode errors = ExitCode::kCheckpoint);

/// The path of the file that a write to `path` reaches: symbolic links at its end are followed,
/// also to a file that does not exist yet. A link of /proc, such as /proc/self/fd/3, is returned as
/// it is: it stands for an open file. Throws for a loop of links.
std::string link_target(const std::string& path, ExitCode errors);

/// Throws ConfigError when writing `output` would replace one of `inputs`: the same regular file by
/// device and inode, symbolic links followed. "-" is standard output, among the inputs standard
/// input.
void require_other_file(const std::string& output, const std::vector<std::string>& inputs);

/// Creates the folder `path` and its missing parents. Each survives a crash of the machine: the
/// folder that it is in is synced. Returns those that were missing, innermost first.
std::vector<std::string> create_folders(const std::string& path, ExitCode errors);

/// Bytes that this process may still write on the file system of `path`, or of the nearest folder
/// above it that exists; nullopt where the system does not say.
std::optional<uint64_t> free_space(const std::string& path);

/// fsync of a folder: creations, renames and removals in it survive a crash of the machine.
void sync_folder(const std::string& path, ExitCode errors);

/// Size, and seconds and nanoseconds of the last change of content and of status: others once the
/// file was written to.
using FileStamps = std::array<int64_t, 5>;

/// A regular file, read at explicit offsets with pread. Safe for concurrent reads. A file that was
/// shortened after it was opened is an error ("was shortened while in use").
class InputFile {
 public:
  InputFile(const std::string& path, ExitCode errors);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  uint64_t size() const { return size_; }  ///< bytes, when it was opened
  void read(uint64_t offset, void* data, size_t size) const;
  /// The whole file; an error when it is longer than `limit` bytes.
  std::string text(uint64_t limit) const;

  /// Whether the path still names this file.
  bool is_named() const;
  const FileStamps& stamps_at_open() const { return stamps_; }
  FileStamps stamps() const;

 private:
  std::string path_;
  ExitCode errors_;
  int fd_ = -1;
  uint64_t size_ = 0;
  FileStamps stamps_{};
};

/// `path`.tmp-<16 random hex digits>
std::string temporary_name(const std::string& path);

/// True when `name` contains ".tmp-"; `stem` is then the part before the last one. Covers names
/// that earlier versions of temporary_name made.
bool is_temporary_name(const std::string& name, std::string& stem);

/// Takes the exclusive flock of an open file or folder without waiting. False when another process
/// holds it; true also where the file system has no locks.
bool try_lock(int fd);

/// Whether another process holds the lock of a temporary file or folder, or may hold it (it cannot
/// be opened, or the file system has no locks). False when it does not exist.
bool has_living_writer(const std::string& path);

/// The folder of `path`; "." for a plain name. A trailing slash is ignored.
std::string parent_folder(const std::string& path);

}  // namespace stablemask
