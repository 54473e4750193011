#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/nn/model.h"

namespace stablemask::infer {

/// An id that was drawn.
struct DrawnToken {
  int32_t id = 0;
  /// Natural logarithms of softmax(logits), before temperature and the other settings: of the id,
  /// and of the likeliest ids, likeliest first. 0 and empty where GenerateRequest::logprobs is −1.
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;
};

enum class Finish {
  kLength,     ///< max_tokens ids
  kStop,       ///< one of stop_ids was drawn, or `emit` returned false
  kCancelled,  ///< Generator::cancel
  kNonFinite,  ///< a logit is not finite
};

struct Outcome {
  Finish finish = Finish::kLength;
  std::string error;  ///< for kNonFinite: what and where
};

/// A text to continue.
struct GenerateRequest {
  std::vector<int32_t> prompt;          ///< at least 1 id
  GenerateConfig settings;              ///< max_tokens, how ids are drawn, the seed
  std::vector<int32_t> first_ids = {};  ///< the first id is one of these; empty: any
  std::vector<int32_t> stop_ids = {};   ///< the text ends after any of these, which is emitted
  int64_t logprobs = -1;                ///< −1: none; K ≥ 0: of each id, and of the K likeliest
  /// Called with each id in order; false ends the text with kStop.
  std::function<bool(const DrawnToken&)> emit = {};
  /// Called once, after the last id.
  std::function<void(const Outcome&)> done = {};
};

struct GeneratorOptions {
  int64_t max_batch = 1;    ///< sequences that run at a time
  int64_t capacity = 0;     ///< tokens of a sequence, prompt and continuation; required
  int64_t vocab_size = 0;   ///< ids that may be drawn; those above are padding; 0: the model's
  bool cuda_graphs = true;  ///< record decoding steps as CUDA graphs; the texts do not depend on it
};

/// Continues texts with a model: sequences of unequal lengths run together, and a new one begins as
/// soon as another ends (continuous batching). On a GPU a decoding step is a CUDA graph, and ids
/// are drawn there. A text is a function of the weights, its prompt and its settings; what runs
/// beside it changes at most the rounding of logits. Not safe for concurrent calls; the callbacks
/// run inside step() and may call add and cancel.
class Generator {
 public:
  /// Allocates the key/value cache, max_batch · capacity tokens (with a window at most the window's
  /// tokens). Throws ConfigError for options out of range or a model that cannot run with a cache
  /// (mask length "sequence", log_length_scale), OutOfMemoryError.
  Generator(nn::Transformer model, const GeneratorOptions& options);
  ~Generator();
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  /// Queues a text and returns its number. Throws ConfigError for settings out of range, an empty
  /// prompt, an id outside the vocabulary, or prompt and max_tokens beyond the capacity.
  uint64_t add(GenerateRequest request);
  /// Ends a text; no effect if it has ended.
  void cancel(uint64_t number);
  /// Begins texts that wait if there is room, and draws the next id of each that runs. Returns
  /// whether any text is left. Throws OutOfMemoryError.
  bool step();
  /// Steps until no text is left, or until a stop signal (stop_signal() is then not 0).
  void run();

  int64_t running() const;
  int64_t waiting() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stablemask::infer
