#include "src/dist/meeting.h"

#include <unistd.h>

#include <chrono>
#include <thread>

#include "src/dist/exchange.h"
#include "src/dist/signs.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"

namespace stablemask::dist {
namespace {

constexpr char kSizeKey[] = "size", kCountKey[] = "come", kAllKey[] = "all", kRefusalKey[] = "no";

/// One process at the meeting. Keys: "who/RANK" (name and token), the others above.
class Meeting {
 public:
  Meeting(c10d::Store& store, const MeetingOptions& options)
      : store_(store),
        options_(options),
        name_("process " + std::to_string(options.rank) + " (" + options.host + ", pid " +
              std::to_string(::getpid()) + ")") {}

  void introduce();
  void wait_for_all();
  std::vector<std::string> names();

 private:
  [[noreturn]] void refuse(const std::string& problem);
  [[noreturn]] void leave(const std::string& refusal);
  std::string who_key(int64_t rank) const { return "who/" + std::to_string(rank); }
  std::string missing();

  c10d::Store& store_;
  const MeetingOptions& options_;
  std::string name_;
};

std::string name_in(const std::string& who) { return who.substr(0, who.find('\n')); }

void Meeting::introduce() {
  // Processes in containers may have the same host name and number.
  const auto token = std::chrono::steady_clock::now().time_since_epoch().count();
  const std::string who = name_ + "\n" + std::to_string(token);
  const std::string first = store_.compareSet(who_key(options_.rank), "", who);
  if (first != who) {
    refuse(name_ + " and " + name_in(first) +
           " have the same number; each needs a RANK (under srun "
           "SLURM_PROCID) of its own");
  }
  const std::string size = std::to_string(options_.size) + " " + name_;
  const std::string agreed = store_.compareSet(kSizeKey, "", size);
  if (std::stoll(agreed) != options_.size) {
    refuse(name_ + " was started as one of " + std::to_string(options_.size) + " processes, " +
           agreed.substr(agreed.find(' ') + 1) + " as one of " +
           agreed.substr(0, agreed.find(' ')) +
           "; start all with the same WORLD_SIZE (under srun the same number of tasks)");
  }
  Watchdog::announce(store_, options_.rank);
  if (store_.add(kCountKey, 1) == options_.size) store_.set(kAllKey, std::string("1"));
}

void Meeting::wait_for_all() {
  const auto begin = std::chrono::steady_clock::now();
  Backoff backoff(/*most_ms=*/50);
  while (!store_.check({kAllKey})) {
    check_stop("waiting for the other processes");
    if (store_.check({kRefusalKey})) leave(store_.get_to_str(kRefusalKey));
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - begin;
    if (waited.count() > options_.timeout_s) {
      throw PeerLostError(missing() + format(" not come within %g s (train.peer_timeout_s); see "
                                             "their output, or start them",
                                             options_.timeout_s));
    }
    backoff.sleep();
  }
}

/// "process 3 of 4 has", "processes 1, 2 of 4 have"; for a sentence that goes on "not come".
std::string Meeting::missing() {
  std::vector<std::string> ranks;
  for (int64_t rank = 0; rank < options_.size; ++rank) {
    if (!store_.check({who_key(rank)})) ranks.push_back(std::to_string(rank));
  }
  if (ranks.empty()) return "a process has ended while the processes met; they have";
  constexpr size_t kMost = 8;
  const bool one = ranks.size() == 1;
  const std::string rest =
      ranks.size() > kMost ? " and " + std::to_string(ranks.size() - kMost) + " more" : "";
  if (ranks.size() > kMost) ranks.resize(kMost);
  return (one ? "process " : "processes ") + join(ranks, ", ") + rest + " of " +
         std::to_string(options_.size) + (one ? " has" : " have");
}

std::vector<std::string> Meeting::names() {
  std::vector<std::string> keys, names;
  for (int64_t rank = 0; rank < options_.size; ++rank) keys.push_back(who_key(rank));
  for (const auto& who : store_.multiGet(keys)) names.push_back(name_in({who.begin(), who.end()}));
  return names;
}

void Meeting::refuse(const std::string& problem) {
  store_.compareSet(kRefusalKey, "", problem);
  leave(problem);
}

void Meeting::leave(const std::string& refusal) {
  // The others must have time to read it.
  if (options_.serves_store) std::this_thread::sleep_for(std::chrono::milliseconds(400));
  throw ConfigError(refusal);
}

}  // namespace

std::vector<std::string> meet(c10d::Store& store, const MeetingOptions& options) {
  try {
    Meeting meeting(store, options);
    meeting.introduce();
    meeting.wait_for_all();
    return meeting.names();
  } catch (const c10::Error& error) {
    throw PeerLostError("the store was lost while the processes met (" +
                        cut_to_line(error.what_without_backtrace()) +
                        "): process 0 or the launcher, which serves it, has ended");
  }
}

}  // namespace stablemask::dist
