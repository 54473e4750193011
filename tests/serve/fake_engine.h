#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "src/serve/engine.h"

namespace stablemask::serve {

/// Continues texts by a rule instead of a model. Set its members before it is used.
class FakeEngine : public Engine {
 public:
  /// Id number `i` of a text; −1: the text fails, −2: the engine does.
  std::function<int32_t(const Text& text, int64_t i)> draw = [](const Text& text, int64_t i) {
    const uint64_t letter = static_cast<uint64_t>(text.settings.seed) + text.prompt.back() + i;
    return static_cast<int32_t>(letter % 26) + 'a' + 3;  // the byte piece
  };
  std::chrono::microseconds step_time{0};

  uint64_t add(Text text) override {
    texts_.push_back({++last_, std::move(text), 0, false});
    return last_;
  }
  void cancel(uint64_t number) override {
    for (Running& text : texts_) text.cancelled = text.cancelled || text.number == number;
  }
  void step() override {
    if (step_time.count() > 0) std::this_thread::sleep_for(step_time);
    texts_.remove_if([this](Running& text) { return !goes_on(text); });
  }

 private:
  struct Running {
    uint64_t number;
    Text text;
    int64_t drawn;
    bool cancelled;
  };

  bool goes_on(Running& running) {
    const Text& text = running.text;
    const auto end = [&](End how, const std::string& error = "") {
      text.done(how, error);
      return false;
    };
    if (running.cancelled) return end(End::kCancelled);
    const int32_t id = draw(text, running.drawn);
    if (id == -2) throw std::runtime_error("the engine broke");
    if (id < 0) return end(End::kFailed, "the logit of id 3 is nan");
    Draw drawn{id, -0.5f, {}};
    for (int64_t k = 0; k < text.logprobs; ++k) {
      drawn.top.emplace_back(static_cast<int32_t>('a' + 3 + k), -1.0f - static_cast<float>(k));
    }
    if (text.logprobs < 0) drawn.logprob = 0;
    if (!text.emit(std::move(drawn))) return end(End::kStop);
    return ++running.drawn < text.settings.max_tokens || end(End::kLength);
  }

  std::list<Running> texts_;
  uint64_t last_ = 0;
};

}  // namespace stablemask::serve
