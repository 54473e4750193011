#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "stablemask/io/checkpoint.h"

namespace stablemask {

/// "step-00002000"
std::string step_name(int64_t step);

/// Inverse of step_name; nullopt for any other name.
std::optional<int64_t> parse_step_name(const std::string& name);

/// Removes the temporary folders and files that killed processes left under `root`; a failure is a
/// warning.
void remove_leftovers(const std::string& root);

/// Removes the complete checkpoints that `retention` does not keep, except the newest one, the one
/// of step `written` and, if `retention` keeps a best one, the one that BEST names. A failure is a
/// warning.
void apply_retention(const std::string& root, const Retention& retention, int64_t written);

}  // namespace stablemask
