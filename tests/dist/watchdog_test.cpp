#include "src/dist/watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "stablemask/base/error.h"
#include "tests/dist/threads.h"

namespace stablemask {
namespace {

using dist::Watchdog;
using dist::WatchdogOptions;
using GroupPtr = std::shared_ptr<dist::Group>;
using std::chrono::milliseconds;

/// The watchdogs of `n` processes, by rank.
std::vector<std::unique_ptr<Watchdog>> watchdogs(int64_t n, double silence_s, double timeout_s) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  WatchdogOptions options;
  options.silence_s = silence_s;
  options.timeout_s = timeout_s;
  for (int64_t rank = 0; rank < n; ++rank) {
    options.names.push_back("process " + std::to_string(rank) + " (host)");
    Watchdog::announce(*store, rank);
  }
  std::vector<std::unique_ptr<Watchdog>> all;
  for (options.rank = 0; options.rank < n; ++options.rank) {
    all.push_back(std::make_unique<Watchdog>(store, options));
  }
  return all;
}

/// What check() throws, once it does; "" when it does not within ten seconds.
std::string loss_of(const Watchdog& watchdog) {
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < std::chrono::seconds(10)) {
    try {
      watchdog.check();
    } catch (const PeerLostError& error) {
      return error.what();
    }
    std::this_thread::sleep_for(milliseconds(2));
  }
  return "";
}

void expect_loss(const Watchdog& watchdog, const std::string& text) {
  const std::string loss = loss_of(watchdog);
  EXPECT_NE(loss.find(text), std::string::npos) << "\"" << loss << "\" lacks \"" << text << "\"";
  EXPECT_TRUE(watchdog.lost());
}

TEST(Watchdog, LosesNobodyWhoGivesSignsOrHasLeft) {
  auto all = watchdogs(3, 0.8, 600), without_first = watchdogs(3, 0.8, 600);
  auto without_second = watchdogs(3, 0.8, 600);
  without_first[0].reset();
  without_second[1].reset();
  std::this_thread::sleep_for(milliseconds(1300));
  for (const auto* some : {&all, &without_first, &without_second}) {
    for (const auto& watchdog : *some) {
      EXPECT_FALSE(watchdog && watchdog->lost());
    }
  }
}

TEST(Watchdog, AFailureEndsTheOthersWithItsReason) {
  for (const size_t failing : {0, 2}) {
    const auto all = watchdogs(3, 2, 600);
    all[failing]->fail("data: shard x is damaged\nframe #0");
    for (size_t rank = 0; rank < all.size(); ++rank) {
      if (rank == failing) continue;
      const std::string name = "process " + std::to_string(failing) + " (host)";
      EXPECT_EQ(loss_of(*all[rank]), name + " ended: data: shard x is damaged");
    }
  }
}

TEST(Watchdog, OfTwoFailuresTheFirstIsThatOfAll) {
  const auto all = watchdogs(3, 2, 600);
  all[1]->fail("first");
  all[2]->fail("second");
  expect_loss(*all[0], "process 1 (host) ended: first");
  expect_loss(*all[2], "process 1 (host) ended: first");
}

TEST(Watchdog, ASilentProcessIsLostToAllAndToItself) {
  for (const size_t silent : {0, 1}) {
    const auto all = watchdogs(3, 0.4, 600);
    all[silent]->stop_for_test(true);
    const std::string name = "process " + std::to_string(silent) + " (host)";
    for (size_t rank = 0; rank < all.size(); ++rank) {
      if (rank != silent) expect_loss(*all[rank], name + " gave no sign of life for 0.4 s");
    }
    EXPECT_FALSE(all[silent]->lost());
    all[silent]->stop_for_test(false);
    expect_loss(*all[silent], "this process was stopped or cut off for 0.4 s");
  }
}

TEST(Watchdog, TheProcessThatOthersWaitForIsNamed) {
  const auto all = watchdogs(3, 2, 0.3);
  const Watchdog::Waiting first(*all[0]), third(*all[2]);
  for (const auto& watchdog : all) EXPECT_FALSE(watchdog->lost());
  expect_loss(*all[0], "process 1 (host) has kept the others waiting for 0.3 s");
  expect_loss(*all[1], "this process has kept the others waiting for 0.3 s");
  expect_loss(*all[2], "process 1 (host) has kept the others waiting for 0.3 s");
}

TEST(Watchdog, ShortWaitsAreNoTimeout) {
  const auto all = watchdogs(2, 2, 0.4);
  for (int i = 0; i < 12; ++i) {
    const Watchdog::Waiting outer(*all[0]), inner(*all[0]);
    std::this_thread::sleep_for(milliseconds(50));
  }
  for (const auto& watchdog : all) EXPECT_FALSE(watchdog->lost());
}

TEST(Watchdog, ProcessesThatWaitForEachOtherAreStuck) {
  const auto all = watchdogs(2, 0.5, 0.3);
  { const Watchdog::Waiting before(*all[1]); }
  const Watchdog::Waiting first(*all[0]), second(*all[1]);
  expect_loss(*all[1], "process 0 (host) has made the fewest calls");
}

/// A store that stops answering, or breaks.
class BrokenStore : public c10d::HashStore {
 public:
  std::atomic<bool> blocked = false, broken = false;
  std::vector<std::vector<uint8_t>> multiGet(const std::vector<std::string>& keys) override {
    while (blocked) std::this_thread::sleep_for(milliseconds(2));
    TORCH_CHECK(!broken, "connection reset");
    return HashStore::multiGet(keys);
  }
};

TEST(Watchdog, AStoreThatDoesNotAnswerIsLost) {
  const auto store = c10::make_intrusive<BrokenStore>();
  Watchdog::announce(*store, 0);
  WatchdogOptions options;
  options.names = {"process 0 (host)"};
  options.store_name = "the store at host:1";
  options.store_server = "torchrun";
  options.silence_s = 0.3;
  {
    const Watchdog watchdog(store, options);
    store->blocked = true;
    expect_loss(watchdog, "the store at host:1 is lost (no answer for 0.3 s): torchrun");
  }  // does not wait for the thread, which is still blocked
  store->blocked = false;
}

TEST(Watchdog, ABrokenStoreIsLost) {
  const auto store = c10::make_intrusive<BrokenStore>();
  Watchdog::announce(*store, 0);
  WatchdogOptions options;
  options.names = {"process 0 (host)"};
  options.silence_s = 0.6;
  const Watchdog watchdog(store, options);
  store->broken = true;
  expect_loss(watchdog, "the store is lost (connection reset");
}

TEST(Watchdog, AServingProcessWaitsForTheOthers) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  WatchdogOptions options;
  options.names = {"process 0", "process 1"};
  options.silence_s = 1;
  for (const int64_t rank : {0, 1}) Watchdog::announce(*store, rank);
  auto other_options = options;
  other_options.rank = 1;
  options.serves_store = true;
  auto server = std::make_unique<Watchdog>(store, options);
  auto other = std::make_unique<Watchdog>(store, other_options);
  std::atomic<bool> left = false;
  std::thread thread([&] {
    std::this_thread::sleep_for(milliseconds(300));
    left = true;
    other.reset();
  });
  server.reset();
  EXPECT_TRUE(left);
  thread.join();
}

/// Process 1 of two, which does not react for a long time after `before(watchdog)`.
void be_stuck(const std::function<void(Watchdog&)>& before) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  WatchdogOptions options;
  options.names = {"process 0 (a)", "process 1 (b)"};
  options.silence_s = 0.3;
  options.grace_s = 0.1;
  options.linger_s = 0.2;
  options.end_process = true;
  options.rank = 1;
  for (const int64_t rank : {0, 1}) Watchdog::announce(*store, rank);
  Watchdog watchdog(store, options);
  before(watchdog);
  std::this_thread::sleep_for(std::chrono::seconds(20));
}

TEST(WatchdogDeathTest, EndsAProcessWhoseMainThreadDoesNotLook) {
  EXPECT_EXIT(be_stuck([](Watchdog&) {}), ::testing::ExitedWithCode(6),
              "stablemask: error: process 1: process 0 \\(a\\) gave no sign of life for 0.3 s");
}

TEST(WatchdogDeathTest, EndsAProcessThatDoesNotEndAfterALoss) {
  EXPECT_EXIT(be_stuck([](Watchdog& watchdog) { loss_of(watchdog); }), ::testing::ExitedWithCode(6),
              "stablemask: error: process 1: process 0 \\(a\\) gave no sign of life for 0.3 s");
}

TEST(WatchdogDeathTest, EndsAProcessThatDoesNotEndAfterItsFailure) {
  EXPECT_EXIT(be_stuck([](Watchdog& watchdog) { watchdog.fail("disk full"); }),
              ::testing::ExitedWithCode(1), "stablemask: error: process 1: disk full");
}

TEST(StoreGroup, AProcessThatFailsEndsThoseThatWait) {
  std::atomic<int> told = 0;
  const auto run = [&](const GroupPtr& group) {
    if (group->rank() == 1) throw DataError("data: no room for tokens");
    try {
      group->all_reduce(at::ones({4}), dist::Reduce::kSum);
    } catch (const PeerLostError& error) {
      EXPECT_STREQ(error.what(), "process 1 (thread) ended: data: no room for tokens");
      ++told;
      throw;
    }
  };
  WatchdogOptions options;
  options.silence_s = 2;
  EXPECT_THROW(testing::run_threads(testing::store_groups(3, options), run), DataError);
  EXPECT_EQ(told, 2);
}

TEST(StoreGroup, AProcessThatDoesNotComeEndsThoseThatWait) {
  WatchdogOptions options;
  options.silence_s = 2;
  options.timeout_s = 0.3;
  std::atomic<int> told = 0;
  testing::run_threads(testing::store_groups(3, options), [&](const GroupPtr& group) {
    const auto call = [&] {
      if (group->rank() == 0) group->agree(1);
      if (group->rank() == 2) group->once("key", [&] { return group->share("")[0]; });
    };
    if (group->rank() == 1) {
      while (told < 2) std::this_thread::sleep_for(milliseconds(5));
      return;
    }
    try {
      call();
    } catch (const PeerLostError& error) {
      EXPECT_NE(std::string(error.what()).find("process 1 (thread) has kept the others waiting"),
                std::string::npos)
          << error.what();
      ++told;
    }
  });
  EXPECT_EQ(told, 2);
}

}  // namespace
}  // namespace stablemask
