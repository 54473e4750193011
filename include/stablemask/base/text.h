#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// 1234567 → "1,234,567".
std::string with_commas(uint64_t value);

/// The parts with `separator` between them: "a; b; c".
std::string join(const std::vector<std::string>& parts, const char* separator = "; ");

/// Whether `text` has characters that a terminal obeys instead of showing them: U+0000 to U+001F,
/// U+007F to U+009F, ends of lines, changes of the direction of writing.
bool has_controls(std::string_view text);

/// For messages: `text` as a JSON string in quotes, cut after 60 bytes ("…"); bytes that are not
/// UTF-8 become U+FFFD, and other characters of has_controls \uXXXX.
std::string in_quotes(std::string_view text);

}  // namespace stablemask
