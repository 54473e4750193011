#include "stablemask/infer/continuation.h"

#include <algorithm>
#include <utility>

#include "stablemask/base/error.h"

namespace stablemask::infer {

Continuation::Continuation(const Tokenizer& tokenizer, const std::string& held,
                           const std::vector<std::string>& stops)
    : decoder_(tokenizer), skip_(held.size()) {
  for (const std::string& text : stops) {
    if (text.empty()) throw ConfigError("a stop text must not be empty");
    Stop stop{text, std::vector<size_t>(text.size())};
    for (size_t i = 1; i < text.size(); ++i) {
      size_t length = stop.border[i - 1];
      while (length > 0 && text[length] != text[i]) length = stop.border[length - 1];
      stop.border[i] = text[length] == text[i] ? length + 1 : 0;
    }
    stops_.push_back(std::move(stop));
  }
}

std::string Continuation::push(int32_t id) { return take(decoder_.push(id)); }

std::string Continuation::finish() {
  std::string text = take(decoder_.finish());
  return text + std::exchange(pending_, {});
}

std::string Continuation::take(const std::string& text) {
  if (stopped_) return "";
  const size_t skipped = std::min(skip_, text.size());
  skip_ -= skipped;
  for (const char byte : std::string_view(text).substr(skipped)) {
    pending_ += byte;
    size_t longest = 0;
    for (Stop& stop : stops_) {
      if (advance(stop, byte)) longest = std::max(longest, stop.text.size());
    }
    if (longest == 0) continue;
    stopped_ = true;
    pending_.resize(pending_.size() - longest);
    return std::exchange(pending_, {});
  }
  size_t kept = 0;
  for (const Stop& stop : stops_) kept = std::max(kept, stop.matched);
  std::string certain = pending_.substr(0, pending_.size() - kept);
  pending_.erase(0, certain.size());
  return certain;
}

/// Whether the stop text ends with this byte.
bool Continuation::advance(Stop& stop, char byte) {
  while (stop.matched > 0 && stop.text[stop.matched] != byte) {
    stop.matched = stop.border[stop.matched - 1];
  }
  if (stop.text[stop.matched] == byte) ++stop.matched;
  return stop.matched == stop.text.size();
}

}  // namespace stablemask::infer
