#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// 1234567 → "1,234,567".
std::string with_commas(uint64_t value);

/// "a; b; c".
std::string join(const std::vector<std::string>& parts, const char* separator = "; ");

/// `text` as a JSON string, shortened when long; bytes that are not UTF-8 become U+FFFD. For
/// messages.
std::string in_quotes(std::string_view text);

}  // namespace stablemask
