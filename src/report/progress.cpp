#include "stablemask/report/progress.h"

#include <algorithm>

namespace stablemask {

Progress::Progress(std::FILE* out, int64_t steps, bool quiet)
    : steps_(steps), quiet_(quiet), line_(std::make_shared<TerminalLine>(out, !quiet)) {}

void Progress::tick(const StepMetrics& metrics) {
  last_ = metrics;
  draw_bar(TerminalLine::When::kOften);
}

void Progress::status(const std::string& text) {
  line_->draw(text, TerminalLine::kNoBar, TerminalLine::When::kNow);
}

void Progress::note(const std::string& message) {
  print(line_->visible() ? wrapped(printable(message), line_->columns()) : message);
}

void Progress::table(const std::vector<LabelledText>& rows) {
  constexpr size_t kColumns = 79;
  print(aligned(rows, line_->visible() ? std::min(kColumns, line_->columns()) : kColumns));
}

void Progress::record(const StepMetrics& metrics) {
  last_ = metrics;
  const std::string text = progress_text(metrics, steps_);
  print(line_->visible() ? wrapped(text, line_->columns(), " | ") : text);
}

/// Text that stays, with the newest bar below.
void Progress::print(const std::string& text) {
  if (quiet_) return;
  line_->erase();
  line_->print(text);
  draw_bar(TerminalLine::When::kNow);
}

void Progress::draw_bar(TerminalLine::When when) {
  if (!last_ || !line_->visible()) return;
  const double fraction =
      static_cast<double>(last_->step) / static_cast<double>(std::max<int64_t>(1, steps_));
  line_->draw(progress_text(*last_, steps_), fraction, when);
}

}  // namespace stablemask
