#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

#include "stablemask/report/metrics.h"

namespace stablemask {

/// How a run shows itself: on a terminal one line that is redrawn (bar, step, loss, lr, tokens/s,
/// ETA; as much of it as a row holds), elsewhere one plain line for each line of metrics.jsonl.
class Progress {
 public:
  /// `out` gets nothing when `quiet`.
  Progress(std::FILE* out, int64_t steps, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// After every step; redraws at most ten times a second. Does nothing elsewhere than on a
  /// terminal.
  void tick(const StepMetrics& metrics);
  /// A line of metrics.jsonl.
  void report(const StepMetrics& metrics);
  /// A message of its own line, above the bar.
  void note(const std::string& message);

 private:
  void clear_bar();

  std::FILE* out_;
  int64_t steps_;
  bool quiet_, terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_draw_{};
};

/// "step 120/2000 | loss 4.1234 | lr 9.8e-04 | 12.3k tok/s | ETA 3m05s", with validation when there
/// is.
std::string progress_text(const StepMetrics& metrics, int64_t steps, double tokens_per_step);

/// 3725 → "1h02m", 185 → "3m05s", 7.2 → "7s".
std::string duration_text(double seconds);

}  // namespace stablemask
