#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/dist/watchdog.h"

namespace stablemask::dist {

/// Sleeps between polls: at first 20 us, then 1.5 times longer each time up to `most_ms`.
class Backoff {
 public:
  explicit Backoff(double most_ms) : most_us_(most_ms * 1000) {}
  void sleep();

 private:
  double next_us_ = 20, most_us_;
};

using Bytes = std::vector<uint8_t>;
using ByteView = c10::ArrayRef<uint8_t>;

/// Values that all processes exchange through the store, in rounds: each process posts any number
/// of values, meet() waits for the posts of all, then each reads those that it needs. A process
/// that posts in a round has read the values of the one before, so that two sets of keys suffice,
/// which the rounds use in turn. Errors of the store become PeerLostError. Not thread-safe.
class Exchange {
 public:
  Exchange(StorePtr store, std::shared_ptr<Watchdog> watchdog);

  /// Posts a value as this process's part `part` of this round.
  void post(int64_t part, ByteView value);
  /// Ends the posts of this round; from here on, they can be read.
  void meet();
  /// The part `part` that process `rank` posted in the round that met last.
  Bytes get(int64_t rank, int64_t part);
  /// The part `part` of every process, by rank; that of this process is left empty.
  std::vector<Bytes> get_others(int64_t part);

 private:
  std::string key(int64_t round, int64_t rank, int64_t part, size_t piece) const;
  void get_rest(int64_t rank, int64_t part, Bytes& value);

  StorePtr store_;
  std::shared_ptr<Watchdog> watchdog_;
  int64_t rank_, size_;
  int64_t round_ = 0;                   // that is open for posts
  std::vector<std::string> pieces_[2];  // own keys beyond the first piece of a value, by round
};

/// Calls `ask`, which uses the store, and turns its errors into PeerLostError.
template <typename Ask>
auto ask_store(Watchdog& watchdog, const Ask& ask) {
  try {
    return ask();
  } catch (const c10::Error& error) {
    watchdog.store_failed(error.what_without_backtrace());
  }
}

/// Polls until `ready` returns true, which uses the store; throws PeerLostError as
/// Watchdog::check() does.
void wait_for_store(Watchdog& watchdog, const std::function<bool()>& ready);

}  // namespace stablemask::dist
