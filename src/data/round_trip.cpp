#include "src/data/round_trip.h"

#include <algorithm>

#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

// The bytes around an offset, printable, for a one-line message: characters, and as \xNN the bytes
// of controls and of characters that are cut.
std::string excerpt(std::string_view text, size_t at) {
  std::string shown;
  std::string_view rest = text.substr(at - std::min<size_t>(at, 8), 24);
  while (!rest.empty()) {
    const size_t size = utf8_character_size(rest);
    const std::string_view character = rest.substr(0, std::max<size_t>(size, 1));
    if (size > 0 && !has_controls(character)) {
      shown += character;
    } else {
      for (const char c : character) shown += format("\\x%02X", static_cast<unsigned char>(c));
    }
    rest.remove_prefix(character.size());
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
