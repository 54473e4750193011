#include "src/data/files.h"

#include <algorithm>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask {

LineChunkReader::LineChunkReader(const std::string& path, size_t chunk_bytes, size_t max_line_bytes)
    : input_(path, ExitCode::kData),
      chunk_bytes_(std::max<size_t>(chunk_bytes, 1)),
      max_line_bytes_(max_line_bytes) {}

void LineChunkReader::read_more(std::string& text) {
  // Small chunks, too, are cut from reads of a useful size.
  constexpr size_t kLeastRead = size_t{1} << 16;
  const size_t old_size = text.size();
  const size_t size = std::max(chunk_bytes_, kLeastRead);
  text.resize(old_size + size);
  const size_t count = input_.read(text.data() + old_size, size);
  text.resize(old_size + count);
  end_ = count == 0;
}

std::string_view LineChunkReader::head() {
  constexpr size_t kEnough = 64;
  while (!end_ && rest_.size() < kEnough && rest_.find('\n') == std::string::npos) {
    read_more(rest_);
  }
  return rest_;
}

bool LineChunkReader::next(std::string& chunk) {
  chunk = std::move(rest_);
  rest_.clear();
  first_line_ = lines_ + 1;
  size_t searched = 0;  // no line end before this offset
  while (!end_) {
    if (chunk.size() >= chunk_bytes_) {
      const size_t line_end = std::string_view(chunk).substr(searched).rfind('\n');
      if (line_end != std::string_view::npos) {
        rest_ = chunk.substr(searched + line_end + 1);
        chunk.resize(searched + line_end + 1);
        break;
      }
      searched = chunk.size();
      if (chunk.size() > max_line_bytes_) {
        throw DataError(format("%s: line %llu: is longer than %zu MiB; break it into lines",
                               name().c_str(), static_cast<unsigned long long>(first_line_),
                               max_line_bytes_ >> 20));
      }
    }
    read_more(chunk);
  }
  lines_ += static_cast<uint64_t>(std::count(chunk.begin(), chunk.end(), '\n'));
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
