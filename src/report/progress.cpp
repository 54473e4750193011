#include "stablemask/report/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "stablemask/base/log.h"

namespace stablemask {
namespace {

constexpr int kBarWidth = 20;

std::string rate_text(double tokens_per_second) {
  if (tokens_per_second >= 1e6) return format("%.2fM tok/s", tokens_per_second / 1e6);
  if (tokens_per_second >= 1e3) return format("%.1fk tok/s", tokens_per_second / 1e3);
  return format("%.0f tok/s", tokens_per_second);
}

/// Columns of the terminal now: its window may have changed since the last look.
size_t columns_of(std::FILE* terminal) {
  constexpr size_t kUsual = 80;  // where the terminal does not know
  winsize size{};
  const bool known = ::ioctl(::fileno(terminal), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : kUsual;
}

/// What fits of "[bar] text": the bar goes first, then field after field from the end.
std::string fitted(const std::string& bar, std::string text, size_t width) {
  const std::string whole = "[" + bar + "] " + text;
  if (whole.size() <= width) return whole;
  while (text.size() > width) {
    const size_t last_field = text.rfind(" | ");
    text.resize(last_field == std::string::npos ? width : last_field);
  }
  return text;
}

double tokens_per_step(const StepMetrics& metrics) {
  return metrics.step > 0 ? static_cast<double>(metrics.tokens) / metrics.step : 0;
}

}  // namespace

std::string duration_text(double seconds) {
  const auto whole = static_cast<long long>(std::llround(std::max(0.0, seconds)));
  if (whole >= 3600) return format("%lldh%02lldm", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return format("%lldm%02llds", whole / 60, whole % 60);
  return format("%llds", whole);
}

std::string progress_text(const StepMetrics& metrics, int64_t steps, double step_tokens) {
  std::string text =
      format("step %lld/%lld | loss %.4f | lr %.2e", static_cast<long long>(metrics.step),
             static_cast<long long>(steps), metrics.loss, metrics.lr);
  if (metrics.tokens_per_second > 0) {
    const double left = (steps - metrics.step) * step_tokens / metrics.tokens_per_second;
    text += " | " + rate_text(metrics.tokens_per_second) + " | ETA " + duration_text(left);
  }
  if (metrics.mfu) text += format(" | MFU %.1f%%", 100 * *metrics.mfu);
  if (metrics.valid_loss) {
    text += format(" | valid loss %.4f, word ppl %.2f", *metrics.valid_loss,
                   metrics.valid_word_ppl.value_or(std::nan("")));
  }
  if (metrics.skipped > 0)
    text += format(" | skipped %lld", static_cast<long long>(metrics.skipped));
  return text;
}

Progress::Progress(std::FILE* out, int64_t steps, bool quiet)
    : out_(out), steps_(steps), quiet_(quiet), terminal_(::isatty(::fileno(out)) == 1) {}

Progress::~Progress() { clear_bar(); }

void Progress::tick(const StepMetrics& metrics) {
  if (quiet_ || !terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (drawn_ && now - last_draw_ < std::chrono::milliseconds(100)) return;
  last_draw_ = now;
  drawn_ = true;
  const auto filled = static_cast<int>(kBarWidth * metrics.step / std::max<int64_t>(1, steps_));
  const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
  const std::string text = progress_text(metrics, steps_, tokens_per_step(metrics));
  // A row that wraps cannot be erased; the last column stays free, where some terminals wrap too.
  const std::string line = fitted(bar, text, columns_of(out_) - 1);
  std::fprintf(out_, "\r\033[K%s", line.c_str());
  std::fflush(out_);
}

void Progress::report(const StepMetrics& metrics) {
  // The bar says the same; only a validation is worth a line that stays.
  if (terminal_ && !metrics.valid_loss) return;
  note(progress_text(metrics, steps_, tokens_per_step(metrics)));
}

void Progress::note(const std::string& message) {
  if (quiet_) return;
  clear_bar();
  std::fprintf(out_, "%s\n", message.c_str());
  std::fflush(out_);
}

void Progress::clear_bar() {
  if (!drawn_) return;
  std::fputs("\r\033[K", out_);
  std::fflush(out_);
  drawn_ = false;
}

}  // namespace stablemask
