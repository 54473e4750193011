#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "stablemask/report/metrics.h"

namespace stablemask {

/// Shows a run to its user. On a terminal: one line with a bar and the metrics, redrawn in place
/// and cut to the terminal's width. Elsewhere (a file, a pipe): one line of text per record.
class Progress final : public MetricsSink {
 public:
  /// `steps`: planned length of the run. Nothing is written to `out` when `quiet`.
  Progress(std::FILE* out, int64_t steps, bool quiet);
  ~Progress() override;
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// After every step: redraws the terminal's line, at most ten times a second.
  void tick(const StepMetrics& metrics);
  /// Progress of other work, for example "verifying shards: 40%"; drawn as tick draws, on a
  /// terminal only.
  void tick(const std::string& text);
  /// A message on a line of its own.
  void note(const std::string& message);

  void cut_after(int64_t) override {}
  /// On a terminal only a validated step gets a line that stays.
  void record(const StepMetrics& metrics) override;
  void sync() override {}

 private:
  bool may_draw();
  void draw(const std::string& line);
  void clear_line();

  std::FILE* out_;
  int64_t steps_;
  bool quiet_, terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_draw_{};
};

}  // namespace stablemask
