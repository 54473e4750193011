#pragma once

#include <httplib.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "src/serve/completion.h"
#include "src/serve/metrics.h"

namespace stablemask::serve {

/// Makes `error` the answer.
void set_error(httplib::Response& response, const ApiError& error);

/// POST /v1/completions. Safe for concurrent use.
class CompletionsRoute {
 public:
  CompletionsRoute(const CompletionContext& context, Metrics& metrics, int64_t max_body_bytes)
      : context_(context), metrics_(metrics), max_body_bytes_(max_body_bytes) {}

  /// Answers a request. A stream goes on when this has returned, until httplib has sent it.
  void answer(const httplib::Request& request, httplib::Response& response,
              const httplib::ContentReader& reader);
  /// From now on requests are refused with 503.
  void drain() { draining_ = true; }
  bool draining() const { return draining_; }
  /// Requests whose answer is not written yet.
  int64_t open() const { return open_; }

 private:
  struct Open;
  /// Makes the JSON `body` the answer and keeps `open` until it is written.
  static void set_whole(httplib::Response& response, const std::shared_ptr<Open>& open,
                        const std::shared_ptr<const std::string>& body, int status);
  void answer(const std::shared_ptr<Open>& open, const httplib::Request& request,
              httplib::Response& response, const std::string& body) const;

  const CompletionContext& context_;
  Metrics& metrics_;
  const int64_t max_body_bytes_;
  std::atomic<bool> draining_{false};
  std::atomic<int64_t> open_{0};
  /// One body is parsed at a time: parsed JSON takes a hundred times the memory of its text.
  mutable std::mutex parsing_;
};

}  // namespace stablemask::serve
