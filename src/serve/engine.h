#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask::serve {

/// An id that was drawn, with natural logarithms of probabilities as in infer::DrawnToken.
struct Draw {
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;
};

/// How a text ended.
enum class End {
  kLength,     ///< max_tokens ids
  kStop,       ///< `emit` returned false
  kCancelled,  ///< Engine::cancel
  kFailed,     ///< see the message
};

/// A text to continue.
struct Text {
  std::vector<int32_t> prompt;
  GenerateConfig settings;
  std::vector<int32_t> first_ids = {};  ///< the first id is one of these; empty: any
  int64_t logprobs = -1;                ///< −1: none; K ≥ 0: of each id, and of the K likeliest
  /// Called with each id in order; false ends the text.
  std::function<bool(Draw)> emit = {};
  /// Called once, after the last id. `error` of kFailed names the problem.
  std::function<void(End, const std::string& error)> done = {};
};

/// What continues texts: infer::Generator, or a stand-in without a model in tests. One thread uses
/// it; the callbacks run inside step().
class Engine {
 public:
  virtual ~Engine() = default;
  /// Queues a text and returns its number. Throws ConfigError for one that it cannot continue.
  virtual uint64_t add(Text text) = 0;
  /// Ends a text; no effect if it has ended.
  virtual void cancel(uint64_t number) = 0;
  /// Draws the next id of each text. An exception leaves the engine unusable.
  virtual void step() = 0;
};

/// What a prompt's text becomes.
struct PromptIds {
  std::vector<int32_t> ids;
  std::vector<int32_t> first_ids = {};  ///< as Text::first_ids
  std::string held = {};  ///< end of the prompt's text with which the first drawn id begins
};

}  // namespace stablemask::serve
