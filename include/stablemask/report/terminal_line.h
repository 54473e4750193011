#pragma once

#include <chrono>
#include <cstdio>
#include <mutex>
#include <string>

#include "stablemask/base/log.h"

namespace stablemask {

/// The last line of a terminal, redrawn in place and cut to the terminal's width; printed text
/// stays above it, and so do the lines of base/log.h. It draws nothing where the stream is no
/// terminal. All members are safe for concurrent use.
class TerminalLine final : public LogListener {
 public:
  /// Draws nothing unless `wanted`. `out` must outlive the object.
  explicit TerminalLine(std::FILE* out, bool wanted = true);
  /// Erases the line.
  ~TerminalLine() override;
  TerminalLine(const TerminalLine&) = delete;
  TerminalLine& operator=(const TerminalLine&) = delete;

  /// Whether draw does anything.
  bool visible() const { return visible_; }
  /// Columns that a line may use: all but the terminal's last one, because some terminals wrap
  /// there. Its window may have been resized since the last call.
  size_t columns() const;

  enum class When {
    kOften,  ///< left out within a tenth of a second after the last drawing
    kNow,
  };
  static constexpr double kNoBar = -1;
  /// Replaces the line by "[####....] text", or by `text` alone with kNoBar. `fraction` of the bar
  /// is filled.
  void draw(const std::string& text, double fraction, When when);
  /// Writes `lines` and "\n", also where there is no terminal, and draws the line again below.
  void print(const std::string& lines);
  void erase();

  void before_log_line() override;
  void after_log_line() override;

 private:
  using Clock = std::chrono::steady_clock;

  void draw_shown();
  void erase_shown();

  std::FILE* const out_;
  const bool visible_;
  std::mutex mutex_;
  bool drawn_ = false;
  std::string text_;  ///< of the last draw
  double fraction_ = kNoBar;
  Clock::time_point last_draw_{};
};

}  // namespace stablemask
