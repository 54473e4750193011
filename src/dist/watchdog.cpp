#include "src/dist/watchdog.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "src/dist/signs.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask::dist {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr char kEndKey[] = "end";
constexpr char kNoEnd[] = "-";
constexpr double kStoreWait_s = 2;  ///< of a thread for an answer of the store to another thread

std::string sign_key(int64_t rank) { return "sign/" + std::to_string(rank); }

double seconds_since(Clock::time_point time) { return Seconds(Clock::now() - time).count(); }

/// For a main thread that no exception can reach. Takes no locks of stdio, which that may hold.
[[noreturn]] void end_this_process(int64_t rank, const std::string& message, ExitCode code) {
  const std::string prefix = rank == 0 ? "" : "process " + std::to_string(rank) + ": ";
  const std::string line = "stablemask: error: " + prefix + message + "\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  ::_exit(static_cast<int>(code));
}

}  // namespace

/// What the process and the two threads have in common.
class Watchdog::State {
 public:
  explicit State(WatchdogOptions options)
      : options_(std::move(options)), period_s_(options_.silence_s / 12) {}

  // For the process.
  const WatchdogOptions& options() const { return options_; }
  bool lost() const noexcept { return lost_.load(std::memory_order_acquire); }
  void check();
  [[noreturn]] void store_failed(const std::string& what);
  void fail(const std::string& reason);
  void begin_wait(bool collective);
  void end_wait();
  void stop(bool stopped) { set(stopped_, stopped); }
  /// Whether the first thread has ended and can be joined.
  bool leave();
  void end_guard() { set(gone_, true); }

  // For the first thread.
  struct Round {
    Sign sign;            ///< to publish
    std::string failure;  ///< the same, if not empty
    bool leaving = false;
    double leaving_s = 0;
  };
  Round begin_round();
  void end_round(const Round& round);
  void pause();
  double period_s() const { return period_s_; }
  void lose(const std::string& message, bool own_failure = false);
  void lose_store(const std::string& what);
  void reporter_ended() { set(reporter_ended_, true); }

  void guard();  ///< the second thread

 private:
  void set(bool& flag, bool value);

  const WatchdogOptions options_;
  const double period_s_;
  std::atomic<bool> lost_ = false;
  std::mutex mutex_;  // of all that follows
  std::condition_variable changed_;
  int64_t beat_ = 0, calls_ = 0, waits_ = 0;
  int64_t rounds_ = 0;  // that the store has answered
  Clock::time_point wait_began_, lost_at_, left_at_;
  std::string failure_, message_;
  bool failure_published_ = false, own_failure_ = false, noticed_ = false, store_lost_ = false;
  bool stopped_ = false, leaving_ = false, hurry_ = false, reporter_ended_ = false, gone_ = false;
};

void Watchdog::State::set(bool& flag, bool value) {
  const std::lock_guard lock(mutex_);
  flag = value;
  changed_.notify_all();
}

void Watchdog::State::check() {
  if (!lost()) return;
  const std::lock_guard lock(mutex_);
  noticed_ = true;
  throw PeerLostError(message_);
}

void Watchdog::State::store_failed(const std::string& what) {
  {
    std::unique_lock lock(mutex_);  // the first thread may know the cause
    changed_.wait_for(lock, Seconds(2 * period_s_), [&] { return lost(); });
  }
  lose_store(what);
  check();
  throw PeerLostError(options_.store_name + " is lost");
}

void Watchdog::State::fail(const std::string& reason) {
  std::unique_lock lock(mutex_);
  if (lost() || !failure_.empty()) return;
  failure_ = cut_to_line(reason.empty() ? "an unknown error" : reason);
  hurry_ = true;
  changed_.notify_all();
  changed_.wait_for(lock, Seconds(kStoreWait_s),
                    [&] { return failure_published_ || reporter_ended_; });
}

void Watchdog::State::begin_wait(bool collective) {
  const std::lock_guard lock(mutex_);
  if (collective) ++calls_;
  if (waits_++ == 0) wait_began_ = Clock::now();
}

void Watchdog::State::end_wait() {
  const std::lock_guard lock(mutex_);
  --waits_;
}

bool Watchdog::State::leave() {
  std::unique_lock lock(mutex_);
  stopped_ = false;
  leaving_ = hurry_ = true;
  left_at_ = Clock::now();
  changed_.notify_all();
  // A thread that is blocked in the store stays there until the connection breaks.
  const double wait_s = (options_.serves_store ? options_.linger_s : 0) + kStoreWait_s;
  changed_.wait_for(lock, Seconds(wait_s), [&] { return reporter_ended_ || store_lost_; });
  return reporter_ended_;
}

Watchdog::State::Round Watchdog::State::begin_round() {
  const std::lock_guard lock(mutex_);
  Round round;
  round.leaving = leaving_;
  if (leaving_) round.leaving_s = seconds_since(left_at_);
  if (!failure_published_) round.failure = failure_;
  round.sign = {++beat_, Sign::kRunning, calls_, -1};
  if (waits_ > 0) round.sign.waiting_ms = static_cast<int64_t>(seconds_since(wait_began_) * 1000);
  if (lost() || !failure_.empty()) {
    round.sign.state = Sign::kEnding;
  } else if (leaving_) {
    round.sign.state = Sign::kDone;
  }
  return round;
}

void Watchdog::State::end_round(const Round& round) {
  const std::lock_guard lock(mutex_);
  ++rounds_;
  failure_published_ = failure_published_ || !round.failure.empty();
  changed_.notify_all();
}

void Watchdog::State::pause() {
  std::unique_lock lock(mutex_);
  const Seconds wait(leaving_ ? period_s_ / 4 : period_s_);
  changed_.wait_for(lock, wait, [&] { return hurry_; });
  changed_.wait(lock, [&] { return !stopped_; });
  hurry_ = false;
}

void Watchdog::State::lose(const std::string& message, bool own_failure) {
  const std::lock_guard lock(mutex_);
  if (lost()) return;
  message_ = message;
  own_failure_ = own_failure;
  lost_at_ = Clock::now();
  lost_.store(true, std::memory_order_release);
  hurry_ = true;  // publishes that this process knows
  changed_.notify_all();
}

void Watchdog::State::lose_store(const std::string& what) {
  std::string message = options_.store_name + " is lost (" + cut_to_line(what) + ")";
  if (!options_.store_server.empty()) {
    message += ": " + options_.store_server + ", which serves it, has ended or cannot be reached";
  }
  lose(message);
  set(store_lost_, true);
}

void Watchdog::State::guard() {
  std::unique_lock lock(mutex_);
  int64_t rounds = 0;
  double unanswered_s = 0;
  for (auto last = Clock::now(); !gone_;) {
    changed_.wait_for(lock, Seconds(period_s_ / 2), [&] { return gone_; });
    const double elapsed_s = std::min(seconds_since(last), period_s_);
    last = Clock::now();
    unanswered_s = rounds == rounds_ && !stopped_ ? unanswered_s + elapsed_s : 0;
    rounds = rounds_;
    if (unanswered_s > options_.silence_s && !lost() && !leaving_) {
      lock.unlock();
      lose_store(format("no answer for %g s", options_.silence_s));
      lock.lock();
    }
    if (!options_.end_process || !lost() || gone_) continue;
    const bool ending = noticed_ || own_failure_;
    if (seconds_since(lost_at_) > options_.grace_s + (ending ? options_.linger_s : 0)) {
      end_this_process(options_.rank, own_failure_ ? failure_ : message_,
                       own_failure_ ? ExitCode::kInternal : ExitCode::kPeerLost);
    }
  }
}

/// The first thread.
class Watchdog::Reporter {
 public:
  Reporter(State& state, StorePtr store)
      : state_(state),
        options_(state.options()),
        size_(static_cast<int64_t>(options_.names.size())),
        store_(std::move(store)),
        signs_(options_.rank, size_, options_.silence_s, options_.timeout_s) {}

  void run();

 private:
  bool round();
  void look();
  void decide(const End& end);
  void accept(const std::string& end);

  State& state_;
  const WatchdogOptions& options_;
  const int64_t size_;
  const StorePtr store_;
  Signs signs_;
  Clock::time_point looked_at_ = Clock::now();
};

void Watchdog::Reporter::run() {
  try {
    while (!round()) state_.pause();
  } catch (const c10::Error& error) {
    // Once process 0 has left as planned, its store may go.
    if (!signs_.done(0)) state_.lose_store(error.what_without_backtrace());
  } catch (const std::exception& error) {
    state_.lose_store(error.what());
  }
  state_.reporter_ended();
}

/// Publishes and reads once. Returns whether this process need not do so any more.
bool Watchdog::Reporter::round() {
  const State::Round round = state_.begin_round();
  if (!round.failure.empty()) decide({End::kFailure, options_.rank, round.failure});
  store_->set(sign_key(options_.rank), round.sign.text());
  signs_.see(options_.rank, round.sign.text(), 0);
  look();
  state_.end_round(round);
  return round.leaving && (!options_.serves_store || signs_.others_have_left() ||
                           round.leaving_s > options_.linger_s);
}

void Watchdog::Reporter::look() {
  const int64_t seen = options_.rank == 0 ? size_ : 1;
  std::vector<std::string> keys = {kEndKey};
  for (int64_t rank = 0; rank < seen; ++rank) keys.push_back(sign_key(rank));
  const std::vector<std::vector<uint8_t>> values = store_->multiGet(keys);
  // Time in which this thread did not run either, such as a machine's sleep, does not count.
  const double elapsed_s = std::min(seconds_since(looked_at_), 3 * state_.period_s());
  looked_at_ = Clock::now();
  for (int64_t rank = 0; rank < seen; ++rank) {
    const auto& value = values[rank + 1];
    if (rank != options_.rank) signs_.see(rank, {value.begin(), value.end()}, elapsed_s);
  }
  const std::string end(values[0].begin(), values[0].end());
  if (end != kNoEnd) {
    accept(end);
  } else if (const auto silent = signs_.silent()) {
    decide(*silent);
  } else if (const auto slow = signs_.slow(); slow && options_.rank == 0) {
    decide(*slow);
  }
}

/// Of several processes that decide, the first one's decision is that of all.
void Watchdog::Reporter::decide(const End& end) {
  accept(store_->compareSet(kEndKey, std::string(kNoEnd), end.text()));
}

void Watchdog::Reporter::accept(const std::string& text) {
  const End end = End::parse(text);
  state_.lose(end.message(options_.names, options_.rank),
              end.kind == End::kFailure && end.rank == options_.rank);
}

void Watchdog::announce(c10d::Store& store, int64_t rank) {
  if (rank == 0) store.set(kEndKey, std::string(kNoEnd));
  store.set(sign_key(rank), Sign().text());
}

Watchdog::Watchdog(StorePtr store, WatchdogOptions options)
    : state_(std::make_shared<State>(std::move(options))) {
  reporter_ = std::thread([state = state_, connection = std::move(store)]() mutable {
    Reporter(*state, std::move(connection)).run();
  });
  guard_ = std::thread([state = state_] { state->guard(); });
}

Watchdog::~Watchdog() {
  if (state_->leave()) {
    reporter_.join();
  } else {
    reporter_.detach();
  }
  state_->end_guard();
  guard_.join();
}

void Watchdog::check() const { state_->check(); }
bool Watchdog::lost() const noexcept { return state_->lost(); }
void Watchdog::store_failed(const std::string& what) { state_->store_failed(what); }
void Watchdog::stop_for_test(bool stopped) { state_->stop(stopped); }
const WatchdogOptions& Watchdog::options() const { return state_->options(); }

void Watchdog::fail(const std::string& reason) noexcept {
  try {
    state_->fail(reason);
  } catch (const std::exception&) {  // out of memory: the others notice the end of this process
  }
}

Watchdog::Waiting::Waiting(Watchdog& watchdog, bool collective) : watchdog_(watchdog) {
  watchdog_.state_->begin_wait(collective);
}
Watchdog::Waiting::~Waiting() { watchdog_.state_->end_wait(); }

}  // namespace stablemask::dist
