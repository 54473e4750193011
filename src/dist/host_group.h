#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "src/dist/exchange.h"
#include "src/dist/watchdog.h"
#include "stablemask/dist/group.h"

namespace stablemask::dist {

/// What connect() has set up when all processes have met.
struct HostPart {
  StorePtr store;  ///< with a prefix for this attempt of the run; not the watchdog's connection
  std::shared_ptr<Watchdog> watchdog;  ///< knows rank and names of the processes
};

/// The part of a group that works through the store, for groups of any device. Functions may be
/// called from one thread at a time; once() also from another one meanwhile. The watchdog ends with
/// the group, before the store: nobody else may keep it.
class HostGroup : public Group {
 public:
  explicit HostGroup(HostPart part);

  int64_t rank() const final { return rank_; }
  int64_t size() const final { return size_; }
  at::Tensor read(const at::Tensor& tensor) override;  ///< of a CPU tensor
  int64_t agree(int64_t decision) override;
  std::vector<std::string> share(const std::string& text) final;
  std::string once(const std::string& key, const std::function<std::string()>& make) final;
  void fail(const std::string& reason) noexcept final;

 protected:
  /// Throws PeerLostError once another process is lost. For loops that wait on something else.
  void check() const { watchdog_->check(); }
  /// Whether check() throws.
  bool lost() const noexcept { return watchdog_->lost(); }
  /// "process 2 (gpu7, pid 4711)", for messages.
  const std::string& name(int64_t rank) const { return watchdog_->options().names.at(rank); }
  /// Marks this process as waiting for the others while it lives: `const auto waiting = wait();`.
  Watchdog::Waiting wait() { return Watchdog::Waiting(*watchdog_); }
  Exchange& exchange() { return exchange_; }

 private:
  StorePtr store_;
  std::shared_ptr<Watchdog> watchdog_;
  Exchange exchange_;
  int64_t rank_, size_;
  std::mutex made_mutex_;
  std::map<std::string, std::string> made_;  // results of once()
  int64_t claims_ = 0;
};

}  // namespace stablemask::dist
