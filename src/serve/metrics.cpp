#include "src/serve/metrics.h"

#include <algorithm>

#include "stablemask/base/log.h"

namespace stablemask::serve {
namespace {

std::string head(const std::string& name, const std::string& type, const std::string& help) {
  return "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

std::string line(const std::string& name, int64_t value) {
  return name + " " + std::to_string(value) + "\n";
}

}  // namespace

void Metrics::request_ended(int status, double seconds) {
  const std::lock_guard lock(mutex_);
  ++requests_[status];
  whole_.add(seconds);
}

void Metrics::prompt_tokens(int64_t count) {
  const std::lock_guard lock(mutex_);
  prompt_tokens_ += count;
}

void Metrics::generated_token() {
  const std::lock_guard lock(mutex_);
  ++generated_tokens_;
}

void Metrics::first_token(double seconds) {
  const std::lock_guard lock(mutex_);
  first_token_.add(seconds);
}

int64_t Metrics::requests(int status) const {
  const std::lock_guard lock(mutex_);
  const auto found = requests_.find(status);
  return found == requests_.end() ? 0 : found->second;
}

int64_t Metrics::generated_tokens() const {
  const std::lock_guard lock(mutex_);
  return generated_tokens_;
}

std::string Metrics::text(int64_t waiting, int64_t running) const {
  const std::lock_guard lock(mutex_);
  std::string text = head("stablemask_requests_total", "counter",
                          "Completions requests by status; 499: the client left.");
  for (const auto& [status, count] : requests_) {
    text += line("stablemask_requests_total{status=\"" + std::to_string(status) + "\"}", count);
  }
  text += head("stablemask_prompt_tokens_total", "counter", "Tokens of accepted prompts.");
  text += line("stablemask_prompt_tokens_total", prompt_tokens_);
  text += head("stablemask_generated_tokens_total", "counter", "Tokens drawn.");
  text += line("stablemask_generated_tokens_total", generated_tokens_);
  text += head("stablemask_queue_length", "gauge", "Texts that wait for their turn.");
  text += line("stablemask_queue_length", waiting);
  text += head("stablemask_running", "gauge", "Texts that are being continued.");
  text += line("stablemask_running", running);
  text += first_token_.text("stablemask_first_token_seconds",
                            "From the arrival of a request to the first token of a text.");
  text += whole_.text("stablemask_request_seconds",
                      "From the arrival of a completions request to the end of its answer.");
  return text;
}

void Metrics::Histogram::add(double seconds) {
  const auto bucket = std::lower_bound(kBounds.begin(), kBounds.end(), seconds);
  ++counts[bucket - kBounds.begin()];
  sum += seconds;
}

std::string Metrics::Histogram::text(const std::string& name, const std::string& help) const {
  std::string text = head(name, "histogram", help);
  int64_t below = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    below += counts[i];
    const std::string bound = i < kBounds.size() ? format("%g", kBounds[i]) : "+Inf";
    text += line(name + "_bucket{le=\"" + bound + "\"}", below);
  }
  text += format("%s_sum %.9g\n", name.c_str(), sum);
  return text + line(name + "_count", below);
}

}  // namespace stablemask::serve
