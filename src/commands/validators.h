#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <system_error>
#include <type_traits>

#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask::commands {

/// An integer from `least` to `most`, in decimal digits. CLI11 would take a number that int64_t
/// cannot hold for its largest value, and 010 for 8.
inline CLI::Validator number_from(int64_t least,
                                  int64_t most = std::numeric_limits<int64_t>::max()) {
  const bool bounded = most != std::numeric_limits<int64_t>::max();
  const auto number = [](int64_t value) { return std::to_string(value); };
  const std::string range =
      bounded ? "from " + number(least) + " to " + number(most) : "at least " + number(least);
  const auto check = [=](std::string& text) -> std::string {
    int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc::result_out_of_range && stop == end && !bounded && text[0] != '-') {
      return "must be at most " + number(most) + ", not " + text;
    }
    const bool plain = error == std::errc() && stop == end && number(value) == text;
    if (plain && value >= least && value <= most) return "";
    return "must be an integer " + range + ", not " + in_quotes(text);
  };
  return {check, range};
}
inline CLI::Validator number_from(int least, int64_t most = std::numeric_limits<int64_t>::max()) {
  return number_from(int64_t{least}, most);
}

/// A number from `least` to `most`. The validators of CLI11 print the largest double, digit by
/// digit, where there is no upper bound.
inline CLI::Validator number_from(double least,
                                  double most = std::numeric_limits<double>::infinity()) {
  const std::string range = std::isinf(most) ? format("at least %.12g", least)
                                             : format("from %.12g to %.12g", least, most);
  const auto check = [least, most, range](std::string& text) -> std::string {
    double value = 0;
    const bool fits = CLI::detail::lexical_cast(text, value) && value >= least && value <= most;
    return fits ? "" : "must be " + range + ", not " + in_quotes(text);
  };
  return {check, range};
}

/// One of these names, which becomes the value beside it. The option's help lists the names.
template <class Enum>
CLI::Validator one_of(std::map<std::string, Enum> values) {
  const auto convert = [values = std::move(values)](std::string& text) -> std::string {
    const auto found = values.find(text);
    if (found != values.end()) {
      text = std::to_string(static_cast<std::underlying_type_t<Enum>>(found->second));
      return "";
    }
    std::string names;
    for (const auto& [name, value] : values) names += (names.empty() ? "" : ", ") + name;
    return "must be one of " + names + ", not " + in_quotes(text);
  };
  return {convert, ""};
}

}  // namespace stablemask::commands
