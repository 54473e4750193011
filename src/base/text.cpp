#include "stablemask/base/text.h"

#include <algorithm>

#include "stablemask/base/log.h"
#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

/// Code point of a well-formed character of one to three bytes; 0 for one of four.
unsigned code_of(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return byte(0);
  if (character.size() == 2) return (byte(0) & 0x1Fu) << 6 | (byte(1) & 0x3Fu);
  if (character.size() > 3) return 0;
  return (byte(0) & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
}

/// What a terminal obeys instead of showing it: controls, ends of lines, directions of writing.
bool is_control(std::string_view character) {
  if (character.size() > 3) return false;
  const unsigned code = code_of(character);
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x200E || code == 0x200F ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
}

/// A well-formed character within quotes.
std::string escaped(std::string_view character) {
  switch (character[0]) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      return is_control(character) ? format("\\u%04x", code_of(character)) : std::string(character);
  }
}

}  // namespace

std::string with_commas(uint64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string join(const std::vector<std::string>& parts, const char* separator) {
  std::string text;
  for (const std::string& part : parts) {
    if (!text.empty()) text += separator;
    text += part;
  }
  return text;
}

bool has_controls(std::string_view text) {
  while (!text.empty()) {
    const size_t size = std::max<size_t>(utf8_character_size(text), 1);
    if (is_control(text.substr(0, size))) return true;
    text.remove_prefix(size);
  }
  return false;
}

std::string in_quotes(std::string_view text) {
  constexpr size_t kMax = 60;
  std::string quoted = "\"";
  size_t at = 0;
  while (at < text.size() && at < kMax) {
    const size_t size = utf8_character_size(text.substr(at));
    if (size == 0) {
      quoted += "\xEF\xBF\xBD";  // U+FFFD
      ++at;
    } else {
      quoted += escaped(text.substr(at, size));
      at += size;
    }
  }
  if (at < text.size()) quoted += "…";
  return quoted + "\"";
}

}  // namespace stablemask
