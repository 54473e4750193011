#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "stablemask/data/tokenizer.h"

namespace stablemask {

/// "" when `ids` decode to `line`; otherwise a one-line message with the first difference.
std::string round_trip_difference(const Tokenizer& tokenizer, std::string_view line,
                                  std::span<const int32_t> ids);

}  // namespace stablemask
