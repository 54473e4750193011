#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace stablemask {

/// The lines of a UTF-8 text, or of standard input for "-", each as soon as it is there.
class LineReader {
 public:
  /// Throws DataError when the file cannot be opened.
  explicit LineReader(const std::string& path);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  /// False at the end. `line` is the next line without its "\n", valid until the next call;
  /// `terminated` tells whether it had one. Throws DataError for compressed text, UTF-16, a line of
  /// more than 256 MiB or a failed read, and Stopped on a stop signal, also while it waits. The
  /// bytes of the line are not checked.
  bool next(std::string_view& line, bool& terminated);
  /// The first bytes of the text, before the first `next`.
  std::string_view head();
  uint64_t number() const;          ///< of the last line, from 1
  const std::string& name() const;  ///< for messages: the path, or "standard input"
  /// Throws DataError: "NAME: line NUMBER: WHAT".
  [[noreturn]] void fail(const std::string& what) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stablemask
