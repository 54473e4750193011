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

/// Writes the name of step `best` to `root`/BEST if its checkpoint is complete.
void name_best(const std::string& root, int64_t best);

/// Removes the complete checkpoints that `retention` does not keep, except the newest one and the
/// one of step `written`. A failure is a warning.
void apply_retention(const std::string& root, const Retention& retention, int64_t written);

}  // namespace stablemask
