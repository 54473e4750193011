#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "src/serve/engine.h"
#include "src/serve/metrics.h"

namespace stablemask::serve {

/// What the scheduler reports of a text: an id, or, without one, its end.
struct Event {
  size_t text = 0;  ///< index in its request
  std::optional<Draw> draw = {};
  End end = End::kLength;
  std::string error = {};
};

/// From the scheduler to the thread that answers a request. The scheduler never waits for that
/// thread: what it has not taken is kept, at most max_tokens ids of each text.
class Channel {
 public:
  /// `each`: the reader wants to be woken by every id, not only by the ends of texts.
  Channel(size_t texts, bool each) : wanted_(texts), left_(texts), each_(each) {
    for (auto& wanted : wanted_) wanted = true;
  }

  // The scheduler's side.
  void push(Event event);
  bool wanted(size_t text) const { return wanted_[text]; }

  // The reader's side.
  /// Everything that has come; waits for it up to `limit`.
  std::vector<Event> take(std::chrono::milliseconds limit);
  /// Asks for the end of a text.
  void drop(size_t text) { wanted_[text] = false; }
  void drop_all();

 private:
  std::vector<std::atomic<bool>> wanted_;
  std::mutex mutex_;
  std::condition_variable come_;
  std::vector<Event> events_;
  size_t left_;  ///< texts that have not ended
  const bool each_;
};

/// A bounded queue of texts before an engine, and the loop that continues them: as soon as one
/// ends, the next one begins (continuous batching).
class Scheduler {
 public:
  struct Options {
    int64_t batch = 1;   ///< texts that the engine continues at a time
    int64_t queue = 64;  ///< texts that wait
  };
  enum class Submitted { kTaken, kFull, kClosed };

  Scheduler(Engine& engine, const Options& options, Metrics& metrics)
      : engine_(engine), options_(options), metrics_(metrics) {}
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Queues all texts of a request, or none where they do not fit. Their `emit` and `done` are set
  /// here: events go to `channel`, with their indices.
  Submitted submit(std::vector<Text> texts, const std::shared_ptr<Channel>& channel);
  /// From now on submit returns kClosed.
  void close();
  /// Continues texts on the calling thread until `leave`, which it asks between two steps and every
  /// 20 ms, returns true. Then, and when the engine throws, which it passes on, it closes and ends
  /// all texts.
  void run(const std::function<bool()>& leave);

  const Options& options() const { return options_; }
  int64_t waiting() const;
  int64_t running() const { return running_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    Text text;
    std::shared_ptr<Channel> channel;
    size_t index = 0;
    Clock::time_point since;
  };
  struct Running {
    uint64_t number = 0;  ///< the engine's
    std::shared_ptr<Channel> channel;
    size_t index = 0;
  };

  void wait_for_texts();
  void begin_texts();
  void begin(Waiting waiting);
  void cancel_unwanted();
  void end_all(End end, const std::string& error);

  Engine& engine_;
  const Options options_;
  Metrics& metrics_;

  mutable std::mutex mutex_;
  std::condition_variable come_;
  std::deque<Waiting> waiting_;
  bool closed_ = false;

  // Of the thread that runs.
  std::map<uint64_t, Running> texts_;  ///< by a number of ours
  uint64_t last_ = 0;
  std::atomic<int64_t> running_{0};
};

}  // namespace stablemask::serve
