#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace stablemask::serve {

/// Counters of a server since its start. Safe for concurrent use.
class Metrics {
 public:
  /// A completions request was answered with this HTTP status; 499: its client left before the end.
  void request_ended(int status, double seconds);
  void prompt_tokens(int64_t count);
  void generated_token();
  /// Seconds from the arrival of a request to the first token of one of its texts.
  void first_token(double seconds);

  int64_t requests(int status) const;
  int64_t generated_tokens() const;
  /// Prometheus text format 0.0.4.
  std::string text(int64_t waiting, int64_t running) const;

 private:
  struct Histogram {
    /// Upper bounds of the buckets in seconds; a last one without bound follows.
    static constexpr std::array<double, 14> kBounds = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                                       1,     2.5,  5,     10,   30,  60,   300};
    void add(double seconds);
    std::string text(const std::string& name, const std::string& help) const;

    std::array<int64_t, kBounds.size() + 1> counts = {};
    double sum = 0;
  };

  mutable std::mutex mutex_;
  std::map<int, int64_t> requests_;
  int64_t prompt_tokens_ = 0, generated_tokens_ = 0;
  Histogram first_token_, whole_;
};

}  // namespace stablemask::serve
