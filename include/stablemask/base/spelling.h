#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// The candidate that `word` was probably meant to be, by edits (a letter inserted, left out,
/// changed, or two neighbours swapped) up to a third of the word; "" when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

/// "; did you mean X?" for the nearest candidate, else "".
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace stablemask
