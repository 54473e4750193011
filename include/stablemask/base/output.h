#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"

namespace stablemask {

/// What is written to an OutputFile, and how.
enum class OutputContent {
  kText,     ///< text or JSON, from front to back; "-" is standard output
  kBytes,    ///< from front to back
  kPatched,  ///< write_at is used: a pipe cannot take it
};

/// The result of a command, at the path that the user named. The constructor finds out, before the
/// work begins, whether it can be written:
///  - a regular file, or a name that does not exist yet, is replaced in one step by `commit`
///    (AtomicFile; a symbolic link is followed and stays). Nothing is in the folder before the
///    first `write`.
///  - a pipe, a device or an open descriptor (/dev/fd/N, as in the shell's >(command)) is opened by
///    the constructor and written straight. A pipe without a reader is waited for (check_stop).
///  - "-" and /dev/stdout are standard output, for text alone. Whether it arrived is for the
///    program to check at its end.
/// Throws Error(errors) for a folder, a place that is not writable, and the file to which standard
/// output is redirected.
class OutputFile {
 public:
  OutputFile(const std::string& path, OutputContent content, ExitCode errors);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Overwrites bytes that `write` has written; for OutputContent::kPatched.
  void write_at(uint64_t offset, const void* data, size_t size);
  /// Publishes a regular file; closes anything else, so that the reader of a pipe sees its end.
  void commit();

  bool is_standard_output() const { return standard_output_; }
  /// Whether `commit` replaces a file, rather than the text goes straight to its reader.
  bool is_regular_file() const { return !standard_output_ && fd_ < 0; }
  const std::string& path() const { return path_; }

 private:
  void take_descriptor(int descriptor, OutputContent content);
  void open_special(const std::string& target, bool pipe, OutputContent content);
  void require_replaceable(const std::string& target) const;
  AtomicFile& regular();

  std::string path_;
  ExitCode errors_;
  bool standard_output_ = false;
  int fd_ = -1;                       // of what is no regular file
  std::unique_ptr<AtomicFile> file_;  // from the first write on
};

/// Opens each of the descriptors 0, 1 and 2 that is closed, so that no file that is opened later
/// takes its number and receives the program's messages. Reading from such a standard input and
/// writing to such a standard output fail (EBADF). For the start of main.
void open_standard_streams();

}  // namespace stablemask
