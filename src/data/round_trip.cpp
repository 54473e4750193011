#include "src/data/round_trip.h"

#include <algorithm>

#include "stablemask/base/log.h"

namespace stablemask {
namespace {

// The bytes around an offset, printable, for a one-line message.
std::string excerpt(std::string_view text, size_t at) {
  std::string shown;
  for (const char c : text.substr(at - std::min<size_t>(at, 8), 24)) {
    const auto byte = static_cast<unsigned char>(c);
    shown += byte < 0x20 || byte == 0x7F ? format("\\x%02X", byte) : std::string(1, c);
  }
  return shown;
}

}  // namespace

std::string round_trip_difference(const Tokenizer& tokenizer, std::string_view line,
                                  const std::vector<int32_t>& ids) {
  const std::string back = tokenizer.decode(ids);
  if (back == line) return "";
  const auto first = std::mismatch(line.begin(), line.end(), back.begin(), back.end()).first;
  const auto at = static_cast<size_t>(first - line.begin());
  return format("the tokenizer does not round-trip at byte %zu: \"%s\" became \"%s\"", at + 1,
                excerpt(line, at).c_str(), excerpt(back, at).c_str());
}

}  // namespace stablemask
