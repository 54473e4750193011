#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace stablemask {

/// A line of a run's metrics.jsonl or samples.jsonl: an object with a whole number "step"; null for
/// every other text.
inline nlohmann::json parse_record(const std::string& line) {
  nlohmann::json record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  const bool whole =
      record.is_object() && record.contains("step") && record["step"].is_number_integer();
  if (!whole) record = nullptr;
  return record;
}

}  // namespace stablemask
