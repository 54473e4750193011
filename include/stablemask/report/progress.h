#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/report/metrics.h"
#include "stablemask/report/terminal_line.h"
#include "stablemask/report/terminal_text.h"

namespace stablemask {

/// Shows a run to its user: one line of text per record and per note. On a terminal these stay
/// above a line with a bar and the newest metrics, which is redrawn in place, and longer ones are
/// broken to the terminal's width.
class Progress final : public MetricsSink {
 public:
  /// `steps`: planned length of the run. Nothing is written to `out` when `quiet`.
  Progress(std::FILE* out, int64_t steps, bool quiet);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// After every step: redraws the terminal's line, at most ten times a second.
  void tick(const StepMetrics& metrics);
  /// Work without a count, for example "saving step 400"; drawn at once, on a terminal only.
  void status(const std::string& text);
  /// The terminal's line, for the progress of other work (WorkProgress).
  const std::shared_ptr<TerminalLine>& line() const { return line_; }

  /// A message on a line of its own.
  void note(const std::string& message);
  /// A table of at most 79 columns.
  void table(const std::vector<LabelledText>& rows);

  void cut_after(int64_t) override {}
  void record(const StepMetrics& metrics) override;
  void sync() override {}

 private:
  void print(const std::string& text);
  void draw_bar(TerminalLine::When when);

  const int64_t steps_;
  const bool quiet_;
  const std::shared_ptr<TerminalLine> line_;
  std::optional<StepMetrics> last_;  ///< of the last tick or record
};

}  // namespace stablemask
