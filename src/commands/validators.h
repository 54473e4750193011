#pragma once

#include <CLI/CLI.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <type_traits>

#include "stablemask/base/log.h"

namespace stablemask::commands {

/// A number from `least` to `most`. The validators of CLI11 print the largest double, digit by
/// digit, where there is no upper bound.
inline CLI::Validator number_from(double least,
                                  double most = std::numeric_limits<double>::infinity()) {
  const std::string range = std::isinf(most) ? format("at least %.12g", least)
                                             : format("from %.12g to %.12g", least, most);
  const auto check = [least, most, range](std::string& text) -> std::string {
    double value = 0;
    const bool fits = CLI::detail::lexical_cast(text, value) && value >= least && value <= most;
    return fits ? "" : "must be " + range + ", not " + text;
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
    return "must be one of " + names + ", not " + text;
  };
  return {convert, ""};
}

}  // namespace stablemask::commands
