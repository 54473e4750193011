#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// The candidate with the smallest edit distance from `word` (insertion, deletion, substitution,
/// swap of neighbouring letters), at most a third of the word's length; "" when there is none.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

/// "; did you mean "X"?" for the nearest candidate, else "".
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace stablemask
