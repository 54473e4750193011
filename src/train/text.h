#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stablemask {

/// 1234567 → "1,234,567".
inline std::string with_commas(uint64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

/// "a; b; c".
inline std::string join(const std::vector<std::string>& parts, const char* separator = "; ") {
  std::string text;
  for (const std::string& part : parts) {
    if (!text.empty()) text += separator;
    text += part;
  }
  return text;
}

}  // namespace stablemask
