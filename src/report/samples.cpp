#include "stablemask/report/samples.h"

#include <algorithm>
#include <sstream>

#include "stablemask/base/log.h"
#include "stablemask/report/terminal_text.h"

namespace stablemask {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// `line` has no line end.
void append_with_breaks(std::string& out, std::string_view line, size_t columns) {
  size_t begin = 0, end = 0, space = std::string_view::npos, used = 0;
  while (end < line.size()) {
    const std::string_view character = first_character(line.substr(end));
    if (used + display_columns(character) > columns) {
      // The space at which the line breaks is left out.
      const bool at_space = character == " " || space != std::string_view::npos;
      const size_t stop = character == " " || !at_space ? end : space;
      out += line.substr(begin, stop - begin);
      out += '\n';
      begin = end = stop + (at_space ? 1 : 0);
      space = std::string_view::npos;
      used = 0;
      continue;
    }
    if (character == " " && end > begin) space = end;
    used += display_columns(character);
    end += character.size();
  }
  out += line.substr(begin);
}

}  // namespace

std::string without_control_characters(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::string_view character = first_character(text);
    if (character == "\t") {
      out += ' ';
    } else {
      out += character != "\n" && !is_printable(character) ? kReplacement : character;
    }
    text.remove_prefix(character.size());
  }
  return out;
}

std::string with_line_breaks(std::string_view text, size_t columns) {
  std::string out;
  while (true) {
    const size_t end = text.find('\n');
    append_with_breaks(out, text.substr(0, end), columns);
    if (end == std::string_view::npos) return out;
    out += '\n';
    text.remove_prefix(end + 1);
  }
}

std::vector<std::string> sample_lines(const Sample& sample, size_t columns) {
  constexpr size_t kIndent = 2, kMaxLines = 8;
  const std::string text =
      with_line_breaks(without_control_characters(sample.prompt + sample.continuation),
                       std::max<size_t>(columns, kIndent + 2) - kIndent);
  std::vector<std::string> lines = {
      format("step %lld, sample %lld:", static_cast<long long>(sample.step),
             static_cast<long long>(sample.number))};
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (lines.size() > kMaxLines) {
      lines.push_back("  …");
      break;
    }
    lines.push_back(std::string(kIndent, ' ') + line);
  }
  return lines;
}

}  // namespace stablemask
