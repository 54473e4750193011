#include "src/ops/algorithms.h"

#include <mutex>
#include <utility>

namespace stablemask::ops {
namespace {

struct CurrentExchange {
  std::mutex mutex;
  AlgorithmExchange exchange;
};

struct CountedTrials {
  std::mutex mutex;
  AlgorithmTrials trials;
};

CurrentExchange& current_exchange() {
  static CurrentExchange current;
  return current;
}

CountedTrials& counted_trials() {
  static CountedTrials counted;
  return counted;
}

}  // namespace

void set_algorithm_exchange(AlgorithmExchange exchange) {
  CurrentExchange& current = current_exchange();
  const std::lock_guard<std::mutex> lock(current.mutex);
  current.exchange = std::move(exchange);
}

AlgorithmExchange algorithm_exchange() {
  CurrentExchange& current = current_exchange();
  const std::lock_guard<std::mutex> lock(current.mutex);
  return current.exchange;
}

AlgorithmTrials algorithm_trials() {
  CountedTrials& counted = counted_trials();
  const std::lock_guard<std::mutex> lock(counted.mutex);
  return counted.trials;
}

void count_trial(double seconds) {
  CountedTrials& counted = counted_trials();
  const std::lock_guard<std::mutex> lock(counted.mutex);
  ++counted.trials.gemms;
  counted.trials.seconds += seconds;
}

}  // namespace stablemask::ops
