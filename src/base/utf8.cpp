#include "stablemask/base/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "stablemask/base/log.h"

namespace stablemask {
namespace {

bool is_continuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

// Bytes of a character with this first byte (Unicode 15, table 3-7), 0 when it cannot be one.
size_t length_by_lead(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

// The second byte's range is what excludes overlong forms, surrogates and > U+10FFFF.
bool may_follow(unsigned char lead, unsigned char second) {
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high;
}

// Length of the well-formed sequence at `p`, 0 when there is none.
size_t sequence_length(const unsigned char* p, size_t available) {
  const size_t length = length_by_lead(p[0]);
  if (length < 2) return length;
  if (available < length || !may_follow(p[0], p[1])) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (!is_continuation(p[i])) return 0;
  }
  return length;
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  const auto* data = reinterpret_cast<const unsigned char*>(text.data());
  const size_t size = text.size();
  size_t i = 0;
  while (i < size) {
    uint64_t word = 0;
    while (size - i >= sizeof(word)) {  // eight ASCII bytes at a time
      std::memcpy(&word, data + i, sizeof(word));
      if (word & 0x8080808080808080ULL) break;
      i += sizeof(word);
    }
    if (i == size) break;
    const size_t length = sequence_length(data + i, size - i);
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string utf8_problem(std::string_view text) {
  const size_t at = find_invalid_utf8(text);
  if (at == std::string_view::npos) return "";
  return format("not valid UTF-8 at byte %zu (0x%02X)", at + 1,
                static_cast<unsigned char>(text[at]));
}

size_t utf8_character_size(std::string_view text) {
  if (text.empty()) return 0;
  return sequence_length(reinterpret_cast<const unsigned char*>(text.data()), text.size());
}

size_t utf8_unfinished_size(std::string_view text) {
  const auto* end = reinterpret_cast<const unsigned char*>(text.data()) + text.size();
  for (size_t size = 1; size <= std::min<size_t>(3, text.size()); ++size) {
    const unsigned char* p = end - size;
    if (is_continuation(p[0])) continue;
    return length_by_lead(p[0]) > size && (size == 1 || may_follow(p[0], p[1])) ? size : 0;
  }
  return 0;
}

std::string with_replacements(std::string_view text) {
  std::string clean;
  while (!text.empty()) {
    const size_t size = utf8_character_size(text);
    clean += size == 0 ? std::string_view("\xEF\xBF\xBD") : text.substr(0, size);
    text.remove_prefix(size == 0 ? 1 : size);
  }
  return clean;
}

}  // namespace stablemask
