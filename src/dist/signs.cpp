#include "src/dist/signs.h"

#include <algorithm>
#include <limits>
#include <sstream>

#include "stablemask/base/log.h"

namespace stablemask::dist {

std::string Sign::text() const {
  return format("%lld %c %lld %lld", static_cast<long long>(beat), state,
                static_cast<long long>(calls), static_cast<long long>(waiting_ms));
}

Sign Sign::parse(const std::string& text) {
  Sign sign;
  char state = kRunning;
  std::istringstream(text) >> sign.beat >> state >> sign.calls >> sign.waiting_ms;
  sign.state = static_cast<State>(state);
  return sign;
}

std::string End::text() const {
  return std::string(1, kind) + " " + std::to_string(rank) + " " + detail;
}

End End::parse(const std::string& text) {
  End end;
  char kind = kFailure;
  std::istringstream stream(text);
  stream >> kind >> end.rank;
  stream.get();  // the space
  std::getline(stream, end.detail);
  end.kind = static_cast<Kind>(kind);
  return end;
}

std::string End::message(const std::vector<std::string>& names, int64_t own) const {
  const std::string name = rank >= 0 && rank < static_cast<int64_t>(names.size())
                               ? names[rank]
                               : "process " + std::to_string(rank);
  switch (kind) {
    case kFailure:
      return name + " ended: " + detail;
    case kSilence:
      if (rank == own) {
        return "this process was stopped or cut off for " + detail +
               " s, so that the others have ended the run";
      }
      return name + " gave no sign of life for " + detail +
             " s: it was killed or stopped, or its machine cannot be reached";
    case kTimeout:
      return (rank == own ? "this process has" : name + " has") + " kept the others waiting for " +
             detail + " s (train.peer_timeout_s): it is stuck, or the timeout is too short";
    case kStuck:
      return "all processes have been waiting for each other for " + detail + " s; " + name +
             " has made the fewest calls";
  }
  return name + " is lost";
}

std::string cut_to_line(const std::string& text) {
  constexpr size_t kMost = 400;
  std::string line = text.substr(0, std::min(text.find('\n'), kMost));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }, ' ');
  return line;
}

Signs::Signs(int64_t own, int64_t size, double silence_s, double timeout_s)
    : own_(own), silence_s_(silence_s), timeout_s_(timeout_s), signs_(size), silent_s_(size) {}

void Signs::see(int64_t rank, const std::string& text, double elapsed_s) {
  const Sign sign = Sign::parse(text);
  silent_s_[rank] = sign.beat == signs_[rank].beat ? silent_s_[rank] + elapsed_s : 0;
  signs_[rank] = sign;
}

std::optional<End> Signs::silent() const {
  for (size_t rank = 0; rank < signs_.size(); ++rank) {
    const auto r = static_cast<int64_t>(rank);
    if (r != own_ && active(r) && silent_s_[rank] > silence_s_) {
      return End{End::kSilence, r, format("%g", silence_s_)};
    }
  }
  return std::nullopt;
}

std::optional<End> Signs::slow() const {
  const auto size = static_cast<int64_t>(signs_.size());
  int64_t longest_ms = -1, shortest_ms = std::numeric_limits<int64_t>::max(), fewest = 0;
  std::optional<int64_t> busy;
  for (int64_t rank = 0; rank < size; ++rank) {
    const Sign& sign = signs_[rank];
    // A process that has left will not answer those that wait.
    if (sign.waiting_ms < 0 && sign.state != Sign::kEnding && !busy) busy = rank;
    longest_ms = std::max(longest_ms, sign.waiting_ms);
    shortest_ms = std::min(shortest_ms, sign.waiting_ms);
    if (sign.calls < signs_[fewest].calls) fewest = rank;
  }
  const double timeout_ms = timeout_s_ * 1000;
  if (static_cast<double>(longest_ms) <= timeout_ms) return std::nullopt;
  const std::string seconds = format("%g", timeout_s_);
  if (busy) return End{End::kTimeout, *busy, seconds};
  // The last of them may have come just now, and all go on.
  if (static_cast<double>(shortest_ms) <= std::min(timeout_ms, silence_s_ * 1000)) {
    return std::nullopt;
  }
  return End{End::kStuck, fewest, seconds};
}

bool Signs::others_have_left() const {
  for (size_t rank = 0; rank < signs_.size(); ++rank) {
    const auto r = static_cast<int64_t>(rank);
    if (r != own_ && active(r) && silent_s_[rank] <= silence_s_) return false;
  }
  return true;
}

}  // namespace stablemask::dist
