#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/report/run_summary.h"

namespace stablemask::commands {

/// One run of `stablemask runs`.
struct RunRow {
  std::string path, name;
  RunSummary summary;
  int64_t steps = 0;  ///< planned; 0: unknown
  /// Path and value, as JSON text, of every config field in the order of the config.
  std::vector<std::pair<std::string, std::string>> fields;
  std::string problem;  ///< why the run, or a part of it, could not be read; "": none

  bool has_metrics() const { return summary.lines > 0; }
  bool finished() const { return steps > 0 && summary.step >= steps; }
};

constexpr size_t kRunTableWidth = 80;

/// Fields whose values differ between the rows that have a config, in the order of the config; not
/// train.out, which always differs.
std::vector<std::string> differing_fields(const std::vector<RunRow>& rows);

/// A table for people, no line wider than `width` (≥ 80) characters: per run a line of figures, its
/// problem, and its values of the differing fields.
std::string run_table(const std::vector<RunRow>& rows, size_t width);

/// RFC 4180: one record per run with every figure and every config field, after a header.
std::string run_csv(const std::vector<RunRow>& rows);

/// {"runs": […], "differing": […]}, documented in docs/report.md.
std::string run_json(const std::vector<RunRow>& rows);

}  // namespace stablemask::commands
