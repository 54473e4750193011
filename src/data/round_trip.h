#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/data/tokenizer.h"

namespace stablemask {

/// "" when `ids` decode to `line`; otherwise a one-line message with the first difference.
std::string round_trip_difference(const Tokenizer& tokenizer, std::string_view line,
                                  const std::vector<int32_t>& ids);

}  // namespace stablemask
