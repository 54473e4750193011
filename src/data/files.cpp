#include "src/data/files.h"

#include <algorithm>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask {
LineChunkReader::LineChunkReader(const std::string& path, size_t chunk_bytes)
    : input_(path, ExitCode::kData), chunk_bytes_(std::max<size_t>(chunk_bytes, 1)) {}

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
        throw DataError(name() + format(": a line is longer than %zu MiB; break it into lines",
                                        kMaxLineBytes >> 20));
      }
    }
    const size_t old_size = chunk.size();
    chunk.resize(old_size + chunk_bytes_);
    const size_t count = input_.read(chunk.data() + old_size, chunk_bytes_);
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
  return InputStream(path, ExitCode::kData).rest(limit);
}

}  // namespace stablemask
