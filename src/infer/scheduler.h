#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "stablemask/infer/generator.h"

namespace stablemask::infer {

/// A text that a Generator continues. Token i of prompt and continuation is at position i of its
/// row of the KV cache. The prompt but for its last token is cached first; each decoding step then
/// caches the newest token and draws the next.
struct Sequence {
  uint64_t number = 0;
  GenerateRequest request;
  int64_t row = -1;      ///< of the cache; −1: waits
  int64_t cached = 0;    ///< tokens of the prompt in the cache
  int64_t launched = 0;  ///< ids that decoding steps draw or have drawn
  int64_t drawn = 0;     ///< of these, ids that the host has read
  int32_t last = 0;      ///< newest id that the host knows
  bool cancelled = false, ended = false;

  int64_t prompt_length() const { return static_cast<int64_t>(request.prompt.size()); }
  bool prefilled() const { return cached == prompt_length() - 1; }
};
using SequencePtr = std::shared_ptr<Sequence>;

/// Which texts wait and which run, each in a row of the cache, and when they end. It knows no
/// tensors. The requests' callbacks run inside `begin` and `deliver` and may call add and cancel.
class Scheduler {
 public:
  explicit Scheduler(int64_t rows);

  uint64_t add(GenerateRequest request);
  void cancel(uint64_t number);
  /// Ends the texts that were cancelled, and gives free rows to those that wait, in their order.
  void begin();
  /// Of the texts that run: those whose prompts are not cached yet; and those to decode, which have
  /// further ids to draw.
  std::vector<SequencePtr> to_prefill() const;
  std::vector<SequencePtr> to_decode() const;
  /// The id drawn for a text; ignored when the text has ended or is cancelled.
  void deliver(const SequencePtr& sequence, const DrawnToken& token);
  void end(const SequencePtr& sequence, const Outcome& outcome);

  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }

 private:
  uint64_t last_number_ = 0;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;
  std::vector<int64_t> free_rows_;
};

}  // namespace stablemask::infer
