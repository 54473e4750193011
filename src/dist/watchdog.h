#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

namespace stablemask::dist {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

struct WatchdogOptions {
  int64_t rank = 0;
  std::vector<std::string> names;        ///< of all processes by rank: "process 2 (gpu7, pid 4711)"
  std::string store_name = "the store";  ///< for messages: "the store at gpu1:29500"
  std::string store_server;              ///< who serves it, for messages: "torchrun"; may be ""
  double silence_s = 6;                  ///< see ConnectOptions
  double timeout_s = 600;                ///< see ConnectOptions
  double grace_s = 3;         ///< from a loss to the end of a process that does not look, see below
  double linger_s = 10;       ///< longest wait in the destructor of a process that serves the store
  bool serves_store = false;  ///< the store ends with this process
  bool end_process = false;   ///< see ConnectOptions
};

/// Notices that another process of a group is lost. A thread with a connection of its own to the
/// store publishes that this process is alive, how many collective calls have waited and for how
/// long the present one has. Process 0's thread reads what all publish and decides who is lost; the
/// others read process 0's and the decision: in all O(size) requests every silence_s / 12. Another
/// thread decides when the store does not answer for silence_s. With end_process it ends the
/// process when, after a loss, check() has not been called for grace_s, and linger_s later when the
/// watchdog still exists, for example because a destructor waits for the GPU: with exit code 6, or
/// 1 after a failure of this process.
class Watchdog {
 public:
  /// Writes the first sign of life of process `rank`. Every process must have done so before the
  /// first watchdog is constructed. Throws c10::Error when the store fails.
  static void announce(c10d::Store& store, int64_t rank);

  /// `store` is used by the watchdog alone.
  Watchdog(StorePtr store, WatchdogOptions options);
  /// Tells the others that this process is done, if nothing has failed: its silence is no loss any
  /// more. A process that serves the store waits until the others are done or know of the loss.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Throws PeerLostError once a process or the store is lost or a process has failed.
  void check() const;
  bool lost() const noexcept;  ///< whether check() throws
  /// The others' check() will throw, naming this process and the first line of `reason`. Returns
  /// once the store has it, or after two seconds without success. Without effect after a loss.
  void fail(const std::string& reason) noexcept;

  /// Throws PeerLostError after an error of the store, preferably with the cause of it.
  [[noreturn]] void store_failed(const std::string& what);

  /// This process waits for others during the lifetime of the object; may be nested.
  class Waiting {
   public:
    /// `collective`: the others make the same call.
    explicit Waiting(Watchdog& watchdog, bool collective = true);
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    Watchdog& watchdog_;
  };

  /// For tests: the threads pause while `stopped`, as in a stopped process.
  void stop_for_test(bool stopped);

  const WatchdogOptions& options() const;

 private:
  class State;
  class Reporter;
  std::shared_ptr<State> state_;  // the threads keep it when one of them cannot be joined
  std::thread reporter_, guard_;
};

}  // namespace stablemask::dist
