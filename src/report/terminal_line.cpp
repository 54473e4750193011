#include "stablemask/report/terminal_line.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "stablemask/base/log.h"
#include "stablemask/report/terminal_text.h"

namespace stablemask {
namespace {

/// "" without a bar.
std::string bar_of(double fraction) {
  constexpr size_t kWidth = 20;
  if (!(fraction >= 0)) return "";
  const auto filled = static_cast<size_t>(kWidth * std::min(fraction, 1.0));
  return std::string(filled, '#') + std::string(kWidth - filled, '.');
}

}  // namespace

TerminalLine::TerminalLine(std::FILE* out, bool wanted)
    : out_(out),
      // Of several processes at one terminal process 0 draws.
      visible_(wanted && terminal_prefix().empty() && ::isatty(::fileno(out)) == 1) {
  if (visible_) add_log_listener(this);
}

TerminalLine::~TerminalLine() {
  if (visible_) remove_log_listener(this);
  erase();
}

size_t TerminalLine::columns() const {
  constexpr size_t kDefault = 80;  // for terminals that do not report a width
  winsize size{};
  const bool known = ::ioctl(::fileno(out_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return (known ? size.ws_col : kDefault) - 1;
}

void TerminalLine::draw(const std::string& text, double fraction, When when) {
  if (!visible_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  constexpr auto kInterval = std::chrono::milliseconds(100);
  if (when == When::kOften && drawn_ && Clock::now() - last_draw_ < kInterval) return;
  text_ = printable(text);
  fraction_ = fraction;
  drawn_ = true;
  draw_shown();
  last_draw_ = Clock::now();
}

void TerminalLine::print(const std::string& lines) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (drawn_) erase_shown();
  std::fprintf(out_, "%s\n", lines.c_str());
  std::fflush(out_);
  if (drawn_) draw_shown();
}

void TerminalLine::erase() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (drawn_) erase_shown();
  drawn_ = false;
}

void TerminalLine::before_log_line() {
  mutex_.lock();  // until after_log_line: no drawing in between
  if (drawn_) erase_shown();
}

void TerminalLine::after_log_line() {
  if (drawn_) draw_shown();
  mutex_.unlock();
}

void TerminalLine::draw_shown() {
  // A line that wraps could not be erased.
  std::fprintf(out_, "\r\033[K%s", fitted(bar_of(fraction_), text_, columns()).c_str());
  std::fflush(out_);
}

void TerminalLine::erase_shown() {
  std::fputs("\r\033[K", out_);
  std::fflush(out_);
}

}  // namespace stablemask
