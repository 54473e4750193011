#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace stablemask {

// UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF.

/// Offset of the first byte that is not part of a well-formed character; npos when there is none.
size_t find_invalid_utf8(std::string_view text);

inline bool is_utf8(std::string_view text) {
  return find_invalid_utf8(text) == std::string_view::npos;
}

/// "not valid UTF-8 at byte N (0xHH)", N from 1, for messages; "" when the text is valid.
std::string utf8_problem(std::string_view text);

/// Size in bytes of the well-formed character at the start of `text`; 0 when there is none.
size_t utf8_character_size(std::string_view text);

/// Bytes at the end of `text` (0 to 3) that start a UTF-8 character and that further bytes could
/// complete. 0 when the text ends with a whole character or with bytes that no character has.
size_t utf8_unfinished_size(std::string_view text);

/// Each byte that is not part of a well-formed character becomes U+FFFD.
std::string with_replacements(std::string_view text);

}  // namespace stablemask
