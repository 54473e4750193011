#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "stablemask/io/checkpoint.h"

namespace stablemask {

// What a test finds on the disk after `storage_work`.

/// "" when every step-N folder in `root` is whole, the newest one is of at least step `at_least`
/// (0: there may be none) with bits that `has_right_bits` accepts, and LATEST, if it is there,
/// names a step; otherwise what is wrong. `newest`: its step, 0 when there is none.
std::string checkpoint_problem(const std::string& root, int64_t at_least, int64_t& newest,
                               const std::function<bool(const Checkpoint&)>& has_right_bits);

/// "" when BEST in FOLDER/checkpoints names a whole checkpoint, of a step that is one of `steps`.
std::string best_problem(const std::string& folder, const std::set<int64_t>& steps);

/// The steps of the complete lines of a metrics.jsonl or samples.jsonl. A line that is not JSON
/// stands for -1.
std::vector<int64_t> steps_of_lines(const std::string& path);

/// The steps whose scalars TensorBoard reads in a folder of event files.
std::vector<int64_t> steps_of_events(const std::string& folder);

/// Files and folders with temporary names under `folder`.
std::vector<std::string> leftovers(const std::string& folder);

}  // namespace stablemask
