#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "src/dist/store_group.h"
#include "stablemask/base/error.h"

namespace stablemask::testing {

/// The groups of `n` processes, by rank, for threads that play them, on the CPU.
inline std::vector<std::shared_ptr<dist::Group>> store_groups(
    int64_t n, dist::WatchdogOptions options = {},
    const dist::StorePtr& store = c10::make_intrusive<c10d::HashStore>()) {
  options.names.clear();
  for (int64_t rank = 0; rank < n; ++rank) {
    options.names.push_back("process " + std::to_string(rank) + " (thread)");
    dist::Watchdog::announce(*store, rank);
  }
  std::vector<std::shared_ptr<dist::Group>> groups;
  for (options.rank = 0; options.rank < n; ++options.rank) {
    groups.push_back(
        dist::make_store_group({store, std::make_shared<dist::Watchdog>(store, options)}));
  }
  return groups;
}

/// Calls `run(group)` on a thread for each group. A thread that throws fails its group; afterwards
/// the first error that is not PeerLostError is rethrown, else the first.
inline void run_threads(std::vector<std::shared_ptr<dist::Group>> groups,
                        const std::function<void(const std::shared_ptr<dist::Group>&)>& run) {
  std::vector<std::exception_ptr> errors(groups.size()), losses(groups.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < groups.size(); ++rank) {
    threads.emplace_back([&, rank] {
      try {
        run(groups[rank]);
      } catch (const PeerLostError&) {
        losses[rank] = std::current_exception();
      } catch (const std::exception& error) {
        errors[rank] = std::current_exception();
        groups[rank]->fail(error.what());
      }
      groups[rank].reset();
    });
  }
  for (std::thread& thread : threads) thread.join();
  errors.insert(errors.end(), losses.begin(), losses.end());
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

/// The same for `n` new groups.
inline void run_processes(int64_t n,
                          const std::function<void(const std::shared_ptr<dist::Group>&)>& run) {
  run_threads(store_groups(n), run);
}

}  // namespace stablemask::testing
