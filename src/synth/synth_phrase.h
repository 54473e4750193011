#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/random.h"

namespace stablemask::synth {

/// What a text may say of its subject: values by name, and lists of further subjects. A fact that
/// does not exist has no entry.
struct Facts {
  std::map<std::string, std::string, std::less<>> values;
  std::map<std::string, std::vector<Facts>, std::less<>> lists;
};

/// Fills in a pattern: `{name}` is a fact, `[a|b|c]` one of its alternatives (they nest, and may be
/// empty). Empty when a fact is missing, so that a sentence about it is left out.
std::string tell(std::string_view pattern, const Facts& facts, SplitMix64& random);

/// A number as WikiText writes it: 12 @,@ 345.
std::string number(int64_t value);

/// "one" to "twelve", then digits.
std::string number_word(int64_t value);

}  // namespace stablemask::synth
