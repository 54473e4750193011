#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "stablemask/report/terminal_line.h"

namespace stablemask {

/// "validating: 1,024/9,000 tok | 350 tok/s | ETA 23s": `done` of `total` units, of which
/// `measured` took `seconds`. Unit "B" is shown in MB, GB or TB. Without a total (0) there is no
/// ETA, and without a measurement no rate.
std::string work_text(const std::string& what, const std::string& unit, int64_t done, int64_t total,
                      int64_t measured, double seconds);

/// Shows on a terminal, and nowhere else, how far a piece of work has come.
class WorkProgress {
 public:
  /// On standard error, unless not `wanted`; erased by the destructor.
  WorkProgress(std::string what, std::string unit, bool wanted = true);
  /// On a line that others use too.
  WorkProgress(std::shared_ptr<TerminalLine> line, std::string what, std::string unit);
  ~WorkProgress();
  WorkProgress(const WorkProgress&) = delete;
  WorkProgress& operator=(const WorkProgress&) = delete;

  /// Rates are measured from the first call, or from one with a smaller `done` than the call before
  /// it: work that starts anew, which is drawn at once. `total` 0: unknown.
  void show(int64_t done, int64_t total);

 private:
  using Clock = std::chrono::steady_clock;

  const std::shared_ptr<TerminalLine> line_;
  const std::string what_, unit_;
  bool begun_ = false;
  int64_t first_ = 0, last_ = 0;  ///< units done at the first and the last call
  Clock::time_point start_{};
};

/// Shows on standard error, if that is a terminal, what work that reports nothing does and for how
/// long: "training the tokenizer for 1m05s | 120,000 lines", redrawn every second by a thread.
class ElapsedProgress {
 public:
  explicit ElapsedProgress(std::string what);
  ~ElapsedProgress();
  ElapsedProgress(const ElapsedProgress&) = delete;
  ElapsedProgress& operator=(const ElapsedProgress&) = delete;

  /// From now on does `what`; the time counts from here when it differs from before. `details`, if
  /// any, comes after the time.
  void now(const std::string& what, const std::string& details);

 private:
  using Clock = std::chrono::steady_clock;

  void draw(TerminalLine::When when);

  TerminalLine line_{stderr};
  std::mutex mutex_;
  std::string what_, details_;
  Clock::time_point start_ = Clock::now();
  std::condition_variable_any ended_;
  std::jthread redraw_;  ///< not started where nothing is shown
};

}  // namespace stablemask
