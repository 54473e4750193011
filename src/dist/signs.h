#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stablemask::dist {

/// What a process publishes of itself at short intervals.
struct Sign {
  enum State : char {
    kRunning = 'r',
    kDone = 'd',   ///< left the group as planned
    kEnding = 'e'  ///< has failed, or knows that the run has ended
  };
  int64_t beat = 0;  ///< differs from that of the sign before
  State state = kRunning;
  int64_t calls = 0;        ///< collective calls that have waited on the host so far
  int64_t waiting_ms = -1;  ///< how long it has been waiting for the others; -1: it is not

  std::string text() const;
  static Sign parse(const std::string& text);  ///< of text()
};

/// Why the run has ended for all processes.
struct End {
  enum Kind : char {
    kFailure = 'f',  ///< process `rank` ended with the error `detail`
    kSilence = 's',  ///< process `rank` has given no sign of life for `detail` seconds
    kTimeout = 't',  ///< process `rank` has kept others waiting for `detail` seconds
    kStuck = 'w'  ///< all have been waiting for `detail` seconds; `rank` has made the fewest calls
  };
  Kind kind = kFailure;
  int64_t rank = 0;
  std::string detail;

  std::string text() const;
  static End parse(const std::string& text);  ///< of text()
  /// The error for process `own`; `names` by rank.
  std::string message(const std::vector<std::string>& names, int64_t own) const;
};

/// The first line of `text`, cut after 400 bytes.
std::string cut_to_line(const std::string& text);

/// The signs of all processes as one of them sees them, and who is lost according to them.
class Signs {
 public:
  Signs(int64_t own, int64_t size, double silence_s, double timeout_s);

  /// The sign of process `rank` as it was read `elapsed_s` after the one before.
  void see(int64_t rank, const std::string& text, double elapsed_s);

  /// A process that has been silent for too long.
  std::optional<End> silent() const;
  /// A process that has kept others waiting for too long; needs the signs of all.
  std::optional<End> slow() const;
  /// Whether each of the others is done, ending or silent.
  bool others_have_left() const;
  bool done(int64_t rank) const { return signs_[rank].state == Sign::kDone; }

 private:
  bool active(int64_t rank) const { return signs_[rank].state == Sign::kRunning; }

  int64_t own_;
  double silence_s_, timeout_s_;
  std::vector<Sign> signs_;
  std::vector<double> silent_s_;
};

}  // namespace stablemask::dist
