#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/dist/group.h"

namespace stablemask::dist {

/// A property of this process that must be the same in all of them, for example {"GPU", "NVIDIA
/// H100 80GB HBM3"}. Line breaks in names and values are compared as spaces.
using Fact = std::pair<std::string, std::string>;

/// Identifies the build of the running program; its value is "" when the linker left no build id.
Fact program_fact();

/// Compares the facts of all processes with those of process 0. Throws on every process the same
/// ConfigError, naming the first process that differs, its host, and its differences.
void require_equal(Group& group, const std::vector<Fact>& facts);

/// `text` of process 0, on every process.
std::string text_of_first(Group& group, const std::string& text);

/// Every process passes what went wrong in it, or "" when nothing did. When some process had a
/// problem, those without one throw PeerLostError naming the first such process, its host and its
/// problem; those with one return true. Returns false when no process had a problem.
bool any_failed(Group& group, const std::string& problem);

}  // namespace stablemask::dist
