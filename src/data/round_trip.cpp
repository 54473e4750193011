#include "src/data/round_trip.h"

#include <algorithm>

#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

// The bytes around an offset, at most 24, printable, for a one-line message: characters, and as
// \xNN the bytes of controls and of characters that are cut.
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
                                  std::span<const int32_t> ids) {
  std::string_view rest = line;
  for (const int32_t id : ids) {
    const std::string& text = tokenizer.text_of(id);
    if (!rest.starts_with(text)) break;
    rest.remove_prefix(text.size());
    ids = ids.subspan(1);
  }
  if (rest.empty() && ids.empty()) return "";
  // Only now is the decoded text put together, as far as the message shows it.
  constexpr size_t kShown = 32;
  size_t at = line.size() - rest.size();
  const size_t before = std::min<size_t>(at, kShown);
  std::string back(line.substr(at - before, before));
  for (const int32_t id : ids) {
    back += tokenizer.text_of(id);
    if (back.size() >= before + 2 * kShown) break;
  }
  const std::string_view wanted = line.substr(at - before);
  const auto first = std::mismatch(wanted.begin(), wanted.end(), back.begin(), back.end()).first;
  const auto in_back = static_cast<size_t>(first - wanted.begin());
  at += in_back - before;
  return format("the tokenizer does not round-trip at byte %zu: \"%s\" became \"%s\"", at + 1,
                excerpt(line, at).c_str(), excerpt(back, in_back).c_str());
}

}  // namespace stablemask
