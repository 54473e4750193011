#include "stablemask/report/work_progress.h"

#include <algorithm>
#include <utility>

#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/report/metrics.h"

namespace stablemask {
namespace {

struct ByteUnit {
  double bytes;
  const char* name;
};

/// The unit in which a number of bytes has at most four digits before the point.
ByteUnit byte_unit(double bytes) {
  if (bytes >= 1e13) return {1e12, "TB"};
  if (bytes >= 1e10) return {1e9, "GB"};
  return {1e6, "MB"};
}

std::string count_text(const std::string& unit, int64_t done, int64_t total) {
  std::string text;
  if (unit == "B") {
    const ByteUnit scale = byte_unit(static_cast<double>(std::max(done, total)));
    text = format("%.1f", static_cast<double>(done) / scale.bytes);
    if (total > 0) text += format("/%.1f", static_cast<double>(total) / scale.bytes);
    return text + " " + scale.name;
  }
  text = with_commas(static_cast<uint64_t>(done));
  if (total > 0) text.append("/").append(with_commas(static_cast<uint64_t>(total)));
  return text + " " + unit;
}

std::string rate_of(const std::string& unit, double rate) {
  if (unit != "B") return rate_text(rate, unit.c_str());
  const ByteUnit scale = byte_unit(rate);
  return format("%.1f %s/s", rate / scale.bytes, scale.name);
}

}  // namespace

std::string work_text(const std::string& what, const std::string& unit, int64_t done, int64_t total,
                      int64_t measured, double seconds) {
  std::string text = what + ": " + count_text(unit, done, total);
  if (measured <= 0 || !(seconds > 0)) return text;
  const double rate = static_cast<double>(measured) / seconds;
  text += " | " + rate_of(unit, rate);
  if (total <= 0) return text;
  return text + " | ETA " + duration_text(static_cast<double>(total - done) / rate);
}

WorkProgress::WorkProgress(std::string what, std::string unit, bool wanted)
    : WorkProgress(std::make_shared<TerminalLine>(stderr, wanted), std::move(what),
                   std::move(unit)) {}

WorkProgress::WorkProgress(std::shared_ptr<TerminalLine> line, std::string what, std::string unit)
    : line_(std::move(line)), what_(std::move(what)), unit_(std::move(unit)) {}

WorkProgress::~WorkProgress() {
  if (begun_) line_->erase();
}

void WorkProgress::show(int64_t done, int64_t total) {
  if (!line_->visible()) return;
  const bool anew = !begun_ || done < last_;
  if (anew) {
    begun_ = true;
    first_ = done;
    start_ = Clock::now();
  }
  last_ = done;
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const double fraction =
      total > 0 ? static_cast<double>(done) / static_cast<double>(total) : TerminalLine::kNoBar;
  line_->draw(work_text(what_, unit_, done, total, done - first_, seconds), fraction,
              anew ? TerminalLine::When::kNow : TerminalLine::When::kOften);
}

ElapsedProgress::ElapsedProgress(std::string what) : what_(std::move(what)) {
  if (!line_.visible()) return;
  draw(TerminalLine::When::kNow);
  redraw_ = std::jthread([this](const std::stop_token& stop) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop.stop_requested()) {
      ended_.wait_for(lock, stop, std::chrono::seconds(1), [] { return false; });
      if (!stop.stop_requested()) draw(TerminalLine::When::kOften);
    }
  });
}

ElapsedProgress::~ElapsedProgress() {
  if (redraw_.joinable()) {
    redraw_.request_stop();
    redraw_.join();
  }
}

void ElapsedProgress::now(const std::string& what, const std::string& details) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool other = what != what_;
  if (other) start_ = Clock::now();
  what_ = what;
  details_ = details;
  if (line_.visible()) draw(other ? TerminalLine::When::kNow : TerminalLine::When::kOften);
}

void ElapsedProgress::draw(TerminalLine::When when) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  line_.draw(what_ + " for " + duration_text(seconds) + (details_.empty() ? "" : " | " + details_),
             TerminalLine::kNoBar, when);
}

}  // namespace stablemask
