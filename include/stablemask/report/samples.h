#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// A text that the model of a run wrote after a validation.
struct Sample {
  int64_t step = 0;
  int64_t number = 0;        ///< of the prompt in train.sample_prompts, from 1
  std::string prompt;        ///< UTF-8
  std::string continuation;  ///< UTF-8
};

/// `text` (UTF-8) without control characters but "\n": a tab becomes a space, any other one U+FFFD.
std::string without_control_characters(std::string_view text);

/// `text` (UTF-8) with line ends added so that no line takes more than `columns` (at least 2)
/// columns of a terminal, at spaces where possible; a space at a break is left out.
std::string with_line_breaks(std::string_view text, size_t columns);

/// For a terminal: a line with step and number, then the text, indented, broken to `columns` and
/// cut after eight lines ("…").
std::vector<std::string> sample_lines(const Sample& sample, size_t columns);

}  // namespace stablemask
