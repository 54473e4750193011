#include "stablemask/base/text.h"

#include "stablemask/base/log.h"
#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

std::string escaped(char c) {
  switch (c) {
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
      return static_cast<unsigned char>(c) < 0x20 ? format("\\u%04x", c) : std::string(1, c);
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
      quoted += size == 1 ? escaped(text[at]) : std::string(text.substr(at, size));
      at += size;
    }
  }
  if (at < text.size()) quoted += "…";
  return quoted + "\"";
}

}  // namespace stablemask
