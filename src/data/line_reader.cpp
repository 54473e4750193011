#include "stablemask/data/line_reader.h"

#include "src/data/files.h"
#include "src/data/text_kind.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask {

struct LineReader::State {
  // A chunk is what one read gave: a line that was typed is not kept waiting for more.
  explicit State(const std::string& path) : reader(path, 1) {}

  LineChunkReader reader;
  std::string chunk;
  std::string_view rest;  // of the chunk
  uint64_t number = 0;
};

LineReader::LineReader(const std::string& path) : state_(std::make_unique<State>(path)) {}
LineReader::~LineReader() = default;

std::string_view LineReader::head() { return state_->reader.head(); }
uint64_t LineReader::number() const { return state_->number; }
const std::string& LineReader::name() const { return state_->reader.name(); }

bool LineReader::next(std::string_view& line, bool& terminated) {
  if (state_->number == 0) require_plain_text(head(), name());
  while (!take_line(state_->rest, line, terminated)) {
    if (!state_->reader.next(state_->chunk)) return false;
    state_->rest = state_->chunk;
  }
  ++state_->number;
  return true;
}

void LineReader::fail(const std::string& what) const {
  throw DataError(format("%s: line %llu: %s", name().c_str(),
                         static_cast<unsigned long long>(number()), what.c_str()));
}

}  // namespace stablemask
