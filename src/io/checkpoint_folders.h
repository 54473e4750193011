#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "stablemask/io/checkpoint.h"

namespace stablemask {

/// "step-00002000"
std::string step_name(int64_t step);

/// The inverse; nullopt for every other spelling.
std::optional<int64_t> parse_step_name(const std::string& name);

/// Removes the temporary folders and files that dead writers left under `root`; a failure is a
/// warning.
void remove_leftovers(const std::string& root);

/// Removes the complete checkpoints that `retention` does not keep; never the newest one, nor the
/// one of step `written`. A failure is a warning.
void apply_retention(const std::string& root, const Retention& retention, int64_t written);

}  // namespace stablemask
