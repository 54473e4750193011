#pragma once

#include <string>

namespace stablemask {

/// The text of an nlohmann JSON value, on one line or indented. Bytes of its strings that are not
/// UTF-8, for example in the name of a file that was found in a folder, become U+FFFD: `dump` by
/// itself would throw.
template <typename Json>
std::string json_text(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace stablemask
