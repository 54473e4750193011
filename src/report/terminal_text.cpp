#include "stablemask/report/terminal_text.h"

#include <algorithm>
#include <cstdint>

#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

struct Range {
  uint32_t first, last;
};

// Blocks of combining marks and other characters without width of their own.
constexpr Range kZeroWidth[] = {{0x0300, 0x036F}, {0x0483, 0x0489},  {0x0591, 0x05BD},
                                {0x064B, 0x065F}, {0x1AB0, 0x1AFF},  {0x1DC0, 0x1DFF},
                                {0x200B, 0x200F}, {0x20D0, 0x20FF},  {0xFE00, 0xFE0F},
                                {0xFE20, 0xFE2F}, {0xE0100, 0xE01EF}};

// Blocks of East Asian Width "W" or "F" (Unicode Standard Annex 11) and of emoji.
constexpr Range kWide[] = {
    {0x1100, 0x115F},   {0x2E80, 0x303E},   {0x3041, 0x4DBF},   {0x4E00, 0xA4CF},  {0xA960, 0xA97F},
    {0xAC00, 0xD7A3},   {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},  {0xFFE0, 0xFFE6},
    {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1F9FF}, {0x20000, 0x3FFFD}};

template <size_t size>
bool contains(const Range (&ranges)[size], uint32_t code) {
  return std::any_of(std::begin(ranges), std::end(ranges),
                     [&](const Range& range) { return range.first <= code && code <= range.last; });
}

struct Character {
  size_t bytes = 1;
  size_t columns = 1;
  bool printable = false;
};

/// The character at the start of a text that is not empty.
Character decoded(std::string_view text) {
  const size_t size = utf8_character_size(text);
  const auto lead = static_cast<unsigned char>(text[0]);
  if (size <= 1) return {1, 1, size == 1 && lead >= 0x20 && lead != 0x7F};
  uint32_t code = lead & (0xFFu >> (size + 1));
  for (size_t i = 1; i < size; ++i) code = code << 6 | (static_cast<unsigned char>(text[i]) & 0x3F);
  const bool control = code >= 0x80 && code < 0xA0;
  return {size, contains(kZeroWidth, code) ? 0u : contains(kWide, code) ? 2u : 1u, !control};
}

std::string_view without(std::string_view text, const char* characters) {
  const size_t end = text.find_last_not_of(characters);
  return text.substr(0, end == std::string_view::npos ? 0 : end + 1);
}

/// A part of `text` for a line of its own and where the next one starts.
struct Break {
  size_t end, next;
};

/// The last separator before which everything fits into `columns`, else the first one if `must`;
/// npos: none. The part before it keeps the separator's punctuation.
Break find_break(std::string_view text, size_t columns, std::string_view separator, bool must) {
  Break found{std::string_view::npos, std::string_view::npos};
  for (size_t at = text.find(separator); at != std::string_view::npos;
       at = text.find(separator, at + 1)) {
    const size_t next = at + separator.size();
    const size_t end = without(text.substr(0, next), " |").size();
    const bool fits = display_columns(text.substr(0, end)) <= columns;
    const bool inside = end > 0 && next < text.size();
    if (inside && (fits || (must && found.end == std::string_view::npos))) found = {end, next};
    if (!fits) break;
  }
  return found;
}

}  // namespace

std::string_view first_character(std::string_view text) {
  return text.substr(0, decoded(text).bytes);
}

bool is_printable(std::string_view character) { return decoded(character).printable; }

size_t display_columns(std::string_view text) {
  size_t columns = 0;
  while (!text.empty()) {
    const Character character = decoded(text);
    columns += character.columns;
    text.remove_prefix(character.bytes);
  }
  return columns;
}

std::string printable(std::string_view text) {
  std::string clean;
  while (!text.empty()) {
    const Character character = decoded(text);
    clean += character.printable ? text.substr(0, character.bytes) : "?";
    text.remove_prefix(character.bytes);
  }
  return clean;
}

std::string_view cut_to_columns(std::string_view text, size_t columns) {
  size_t bytes = 0, used = 0;
  while (bytes < text.size()) {
    const Character character = decoded(text.substr(bytes));
    if (used + character.columns > columns) break;
    used += character.columns;
    bytes += character.bytes;
  }
  return text.substr(0, bytes);
}

std::string fitted(const std::string& bar, const std::string& text, size_t columns) {
  if (!bar.empty()) {
    const std::string whole = "[" + bar + "] " + text;
    if (display_columns(whole) <= columns) return whole;
  }
  std::string_view rest = text;
  while (display_columns(rest) > columns) {
    const size_t last_field = rest.rfind(" | ");
    if (last_field == std::string_view::npos) return std::string(cut_to_columns(rest, columns));
    rest = rest.substr(0, last_field);
  }
  return std::string(rest);
}

std::string wrapped(std::string_view text, size_t columns, std::string_view separator,
                    size_t indent) {
  std::string lines;
  size_t room = columns;
  while (display_columns(text) > room) {
    Break at = find_break(text, room, separator, /*must=*/false);
    if (at.end == std::string_view::npos) at = find_break(text, room, " ", /*must=*/true);
    if (at.end == std::string_view::npos) break;
    lines += std::string(text.substr(0, at.end)) + "\n" + std::string(indent, ' ');
    text.remove_prefix(at.next);
    while (text.starts_with(' ') || text.starts_with('|')) text.remove_prefix(1);
    room = columns > indent ? columns - indent : 1;
  }
  return lines + std::string(text);
}

std::string aligned(const std::vector<LabelledText>& rows, size_t columns) {
  size_t label_columns = 0;
  for (const LabelledText& row : rows) {
    label_columns = std::max(label_columns, display_columns(row.label));
  }
  const size_t indent = label_columns + 2;
  std::string lines;
  for (const LabelledText& row : rows) {
    const std::string label = row.label + std::string(indent - display_columns(row.label), ' ');
    const size_t room = columns > indent ? columns - indent : 1;
    std::string text = wrapped(row.text, room, ", ", 0);
    for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1)) {
      text.insert(at + 1, indent, ' ');
    }
    lines += (lines.empty() ? "" : "\n") + label + text;
  }
  return lines;
}

}  // namespace stablemask
