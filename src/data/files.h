#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "stablemask/base/input_stream.h"

namespace stablemask {

/// Reads a file, or standard input for "-", in chunks of whole lines.
class LineChunkReader {
 public:
  /// A longer line is a DataError that names the file, the line and this limit: the file has no
  /// line ends, or is not text.
  static constexpr size_t kMaxLineBytes = size_t{256} << 20;

  explicit LineChunkReader(const std::string& path, size_t chunk_bytes = size_t{1} << 20,
                           size_t max_line_bytes = kMaxLineBytes);

  /// Replaces `chunk` by the next lines, at least one (the last line may lack its "\n"). False at
  /// the end of the text. Throws Stopped on a stop signal, also while it waits for a pipe.
  bool next(std::string& chunk);
  /// Before the first `next`: the first bytes of the text, at least 64 unless a line or the text
  /// ends before. Waits for them as `next` does.
  std::string_view head();
  /// Number, from 1, of the first line of the last chunk.
  uint64_t first_line() const { return first_line_; }
  /// For messages: the path, or "standard input".
  const std::string& name() const { return input_.name(); }

 private:
  void read_more(std::string& text);

  InputStream input_;
  std::string rest_;
  size_t chunk_bytes_, max_line_bytes_;
  uint64_t first_line_ = 1;
  uint64_t lines_ = 0;  // of the chunks before the next one
  bool end_ = false;
};

/// Removes the first line from `text` and returns it, without its "\n", in `line`; `terminated`
/// says whether it had one. False when `text` is empty.
bool take_line(std::string_view& text, std::string_view& line, bool& terminated);

/// The content of a file; DataError when it is longer than `limit` bytes.
std::string read_small_file(const std::string& path, size_t limit);

}  // namespace stablemask
