#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <future>
#include <numeric>
#include <thread>

#include "stablemask/data/shards.h"

namespace stablemask {
namespace {

/// Worker threads take one shard after the other, the largest first.
class Verification {
 public:
  explicit Verification(const std::vector<std::shared_ptr<const Shard>>& shards)
      : shards_(shards), order_(shards.size()), failures_(shards.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
      return shards[a]->payload_bytes() > shards[b]->payload_bytes();
    });
    for (const auto& shard : shards) total_ += shard->payload_bytes();
  }

  void work() {
    for (size_t k = next_++; k < order_.size() && !cancelled_; k = next_++) {
      try {
        shards_[order_[k]]->verify([this](uint64_t bytes) {
          done_ += bytes;
          if (cancelled_) throw Cancelled();
        });
      } catch (const Cancelled&) {
        return;
      } catch (...) {
        failures_[order_[k]] = std::current_exception();
        cancel();
      }
    }
  }

  void cancel() { cancelled_ = true; }
  uint64_t done() const { return done_; }
  uint64_t total() const { return total_; }
  /// After the workers have ended.
  void rethrow_first_failure() const {
    for (const std::exception_ptr& failure : failures_) {
      if (failure) std::rethrow_exception(failure);
    }
  }

 private:
  struct Cancelled {};

  const std::vector<std::shared_ptr<const Shard>>& shards_;
  std::vector<size_t> order_;
  std::vector<std::exception_ptr> failures_;  // each written by the thread that has the shard
  std::atomic<size_t> next_{0};
  std::atomic<uint64_t> done_{0};
  std::atomic<bool> cancelled_{false};
  uint64_t total_ = 0;
};

}  // namespace

void verify_shards(const std::vector<std::shared_ptr<const Shard>>& shards, int threads,
                   const VerifyProgress& progress) {
  constexpr auto kInterval = std::chrono::milliseconds(100);
  Verification verification(shards);
  if (threads < 1) threads = static_cast<int>(std::thread::hardware_concurrency());
  const size_t count =
      std::clamp<size_t>(static_cast<size_t>(threads), 1, std::max<size_t>(shards.size(), 1));
  std::vector<std::future<void>> workers;  // their destructors wait
  try {
    while (workers.size() < count) {
      workers.push_back(std::async(std::launch::async, [&] { verification.work(); }));
    }
    for (const std::future<void>& worker : workers) {
      while (worker.wait_for(kInterval) != std::future_status::ready) {
        if (progress) progress(verification.done(), verification.total());
      }
    }
  } catch (...) {  // of `progress`, or no thread could be started
    verification.cancel();
    throw;
  }
  verification.rethrow_first_failure();
  if (progress) progress(verification.total(), verification.total());
}

}  // namespace stablemask
