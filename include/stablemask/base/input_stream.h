#pragma once

#include <cstddef>
#include <string>

#include "stablemask/base/error.h"

namespace stablemask {

/// A file of any kind, or standard input for "-", read from its beginning to its end. Opening never
/// waits. `read` waits for the writer of a FIFO, for a pipe or a terminal, and throws Stopped
/// (base/stop.h) on a stop signal. Failures are the Error that `errors` selects, "NAME: …".
class InputStream {
 public:
  /// A folder is an error. `shown_as`: the name in messages; "": the path, or "standard input".
  InputStream(const std::string& path, ExitCode errors, const std::string& shown_as = "");
  ~InputStream();
  InputStream(const InputStream&) = delete;
  InputStream& operator=(const InputStream&) = delete;

  /// Between 1 and `size` bytes; 0 at the end.
  size_t read(char* buffer, size_t size);
  /// All that is left; an error when that is more than `limit` bytes.
  std::string rest(size_t limit);

  const std::string& name() const { return name_; }

 private:
  std::string name_;
  ExitCode errors_;
  int fd_ = -1;
  bool owned_ = false;
};

}  // namespace stablemask
