#include "stablemask/report/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

namespace stablemask {
namespace {

constexpr int kBarWidth = 20;

/// Columns of the terminal now: its window may have been resized.
size_t columns_of(std::FILE* terminal) {
  constexpr size_t kDefault = 80;  // for terminals that do not report a width
  winsize size{};
  const bool known = ::ioctl(::fileno(terminal), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : kDefault;
}

/// "[bar] text" shortened to `width`: without the bar, then without the last fields.
std::string fitted(const std::string& bar, std::string text, size_t width) {
  const std::string whole = "[" + bar + "] " + text;
  if (!bar.empty() && whole.size() <= width) return whole;
  while (text.size() > width) {
    const size_t last_field = text.rfind(" | ");
    text.resize(last_field == std::string::npos ? width : last_field);
  }
  return text;
}

}  // namespace

Progress::Progress(std::FILE* out, int64_t steps, bool quiet)
    : out_(out), steps_(steps), quiet_(quiet), terminal_(::isatty(::fileno(out)) == 1) {}

Progress::~Progress() { clear_line(); }

bool Progress::may_draw() {
  if (quiet_ || !terminal_) return false;
  const auto now = std::chrono::steady_clock::now();
  if (drawn_ && now - last_draw_ < std::chrono::milliseconds(100)) return false;
  last_draw_ = now;
  return true;
}

void Progress::draw(const std::string& line) {
  drawn_ = true;
  std::fprintf(out_, "\r\033[K%s", line.c_str());
  std::fflush(out_);
}

void Progress::tick(const StepMetrics& metrics) {
  if (!may_draw()) return;
  const int64_t steps = std::max<int64_t>(1, steps_);
  const auto filled =
      static_cast<size_t>(std::min<int64_t>(kBarWidth, kBarWidth * metrics.step / steps));
  const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
  // A line that wraps cannot be erased. The last column stays free: some terminals wrap there.
  draw(fitted(bar, progress_text(metrics, steps_), columns_of(out_) - 1));
}

void Progress::tick(const std::string& text) {
  if (may_draw()) draw(fitted("", text, columns_of(out_) - 1));
}

void Progress::record(const StepMetrics& metrics) {
  // The redrawn line shows the others already.
  if (terminal_ && !metrics.valid_loss) return;
  note(progress_text(metrics, steps_));
}

void Progress::note(const std::string& message) {
  if (quiet_) return;
  clear_line();
  std::fprintf(out_, "%s\n", message.c_str());
  std::fflush(out_);
}

void Progress::clear_line() {
  if (!drawn_) return;
  std::fputs("\r\033[K", out_);
  std::fflush(out_);
  drawn_ = false;
}

}  // namespace stablemask
