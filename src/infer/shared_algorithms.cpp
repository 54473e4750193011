#include "stablemask/infer/shared_algorithms.h"

#include <string>
#include <utility>

#include "stablemask/ops/algorithms.h"

namespace stablemask {

SharedAlgorithms::SharedAlgorithms(std::shared_ptr<dist::Group> group) {
  if (group->size() == 1) return;
  ops::AlgorithmExchange exchange;
  exchange.writes_cache = group->rank() == 0;
  exchange.once = [group = std::move(group)](const std::string& key,
                                             const std::function<std::string()>& choose) {
    return group->once(key, choose);
  };
  ops::set_algorithm_exchange(std::move(exchange));
}

SharedAlgorithms::~SharedAlgorithms() { ops::set_algorithm_exchange({}); }

}  // namespace stablemask
