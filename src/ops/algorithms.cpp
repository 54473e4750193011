#include "src/ops/algorithms.h"

#include <mutex>
#include <utility>

namespace stablemask::ops {
namespace {

struct CurrentExchange {
  std::mutex mutex;
  AlgorithmExchange exchange;
};

CurrentExchange& current_exchange() {
  static CurrentExchange current;
  return current;
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

}  // namespace stablemask::ops
