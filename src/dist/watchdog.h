#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

namespace stablemask::dist {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

struct WatchdogOptions {
  int64_t rank = 0, size = 1;
  std::vector<std::string> names;        ///< by rank, for messages: "process 2 (gpu7, pid 4711)"
  std::string store_name = "the store";  ///< for messages: "the store at gpu1:29500"
  double silence_s = 6;                  ///< see ConnectOptions
  double timeout_s = 600;                ///< see ConnectOptions
  double grace_s = 3;                    ///< before end_process takes effect
  double linger_s = 10;                  ///< longest wait of a serving process for the others
  bool serves_store = false;             ///< the store ends with this process
  bool end_process = false;              ///< see ConnectOptions
};

/// Notices that another process of a group is lost. A thread with a connection of its own to the
/// store publishes that this process is alive, how many waits it has begun and for how long it has
/// been waiting. Process 0's thread reads what all publish and decides who is lost; the others read
/// process 0's and the decision: in all O(size) requests in silence_s / 12. Another thread decides
/// when the store does not answer.
class Watchdog {
 public:
  /// Publishes a first sign of life before it returns. The first sign of every other process must
  /// come within silence_s: construct it after all processes have met. `store` is used by the
  /// watchdog alone. Throws c10::Error when the store fails.
  Watchdog(StorePtr store, WatchdogOptions options);
  /// Tells the others that this process is done, if it has not failed. A serving process first
  /// waits for the others to be done, or to know of the loss.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Throws PeerLostError once a process or the store is lost or another process has failed.
  void check() const;
  bool lost() const noexcept;  ///< whether check() throws
  /// The others' check() will throw, naming this process and the first line of `reason`. Returns
  /// once the store has it, or after some seconds without success. Without effect when another
  /// process is lost already.
  void fail(const std::string& reason) noexcept;

  /// This process waits for others during the lifetime of the object; may be nested.
  class Waiting {
   public:
    explicit Waiting(Watchdog& watchdog);
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    Watchdog& watchdog_;
  };

  /// For tests: the thread publishes and reads nothing while `stopped`, as in a stopped process.
  void stop_for_test(bool stopped);

  const WatchdogOptions& options() const;

 private:
  struct State;
  std::shared_ptr<State> state_;  // the threads keep it when one of them cannot be joined
  std::thread reporter_, guard_;
};

}  // namespace stablemask::dist
