#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/report/progress.h"

namespace stablemask::commands {

/// A line on standard error, redrawn at most ten times a second and erased at the end:
/// "1,024/9,000 tokens | 350 tok/s | ETA 22s". Shows nothing unless standard error is a terminal.
class TokenProgress {
 public:
  /// `label` precedes the counts: "length 512 (1 of 3): ".
  explicit TokenProgress(bool wanted = true, std::string label = "")
      : shown_(wanted && ::isatty(STDERR_FILENO) == 1), label_(std::move(label)) {}
  ~TokenProgress() {
    if (drawn_) std::fputs("\r\033[K", stderr);
  }
  TokenProgress(const TokenProgress&) = delete;
  TokenProgress& operator=(const TokenProgress&) = delete;

  void show(int64_t done, int64_t total) {
    const auto now = Clock::now();
    if (!shown_ || now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    drawn_ = true;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const double rate = static_cast<double>(done) / seconds;
    std::fprintf(stderr, "\r\033[K%s%s/%s tokens | %.0f tok/s | ETA %s", label_.c_str(),
                 with_commas(done).c_str(), with_commas(total).c_str(), rate,
                 duration_text(static_cast<double>(total - done) / rate).c_str());
  }

 private:
  using Clock = std::chrono::steady_clock;

  bool shown_, drawn_ = false;
  std::string label_;
  Clock::time_point start_ = Clock::now(), last_ = start_;
};

}  // namespace stablemask::commands
