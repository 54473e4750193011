#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

/// Text measured in the columns of a terminal.
namespace stablemask {

/// Columns that a terminal uses for `text`: 2 for a wide East Asian character or emoji, 0 for a
/// combining mark, 1 for every other character and for every byte that is not UTF-8.
size_t display_columns(std::string_view text);

/// The character at the start of a text that is not empty; a byte that is not UTF-8 counts as one.
std::string_view first_character(std::string_view text);

/// Whether a character is neither a control character nor a byte that is not UTF-8, which would
/// move the cursor or be shown with an unknown width.
bool is_printable(std::string_view character);

/// `text` with "?" for each character that is not printable.
std::string printable(std::string_view text);

/// The first characters of `text` that fit into `columns`.
std::string_view cut_to_columns(std::string_view text, size_t columns);

/// "[bar] text" shortened to `columns`: without the bar, then without the last of the fields
/// between " | ", then cut. `bar` may be empty.
std::string fitted(const std::string& bar, const std::string& text, size_t columns);

/// `text` in lines of at most `columns`, broken at `separator` where possible, else at a space; a
/// longer word, for example a path, stays whole. Spaces and "|" at a break are dropped; the lines
/// after the first begin with `indent` spaces. No "\n" at the end.
std::string wrapped(std::string_view text, size_t columns, std::string_view separator = " ",
                    size_t indent = 2);

/// A row of a two-column table.
struct LabelledText {
  std::string label, text;
};

/// One line per row, the texts aligned and broken at ", " to at most `columns`; "\n" between them.
std::string aligned(const std::vector<LabelledText>& rows, size_t columns);

}  // namespace stablemask
