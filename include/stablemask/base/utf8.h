#pragma once

#include <cstddef>
#include <string_view>

namespace stablemask {

/// Offset of the first byte that is not part of well-formed UTF-8 (RFC 3629: no overlong forms, no
/// surrogates, nothing above U+10FFFF), or npos when all of it is.
size_t find_invalid_utf8(std::string_view text);

/// Bytes of the well-formed UTF-8 character that `text` starts with; 0: there is none.
size_t utf8_character_size(std::string_view text);

/// Bytes at the end of `text` (0 to 3) that start a UTF-8 character and that further bytes could
/// complete. 0 when the text ends with a whole character or with bytes that no character has.
size_t utf8_unfinished_size(std::string_view text);

}  // namespace stablemask
