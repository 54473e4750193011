#include "stablemask/optim/optimizer.h"

#include <c10/util/Exception.h>

#include <utility>

#include "src/optim/adamw.h"

namespace stablemask {
namespace {

struct Kind {
  OptimizerKind kind;
  int64_t numbers_per_parameter;  ///< in the format config.state
  std::unique_ptr<Optimizer> (*make)(const OptimizerConfig& config,
                                     std::shared_ptr<FlatParameters> parameters,
                                     ops::Kernels kernels, int64_t seed);
};

constexpr Kind kKinds[] = {
    {OptimizerKind::kAdamW, kAdamWNumbersPerParameter, make_adamw},
};

const Kind& entry_of(OptimizerKind kind) {
  for (const Kind& entry : kKinds) {
    if (entry.kind == kind) return entry;
  }
  TORCH_INTERNAL_ASSERT(false, "no optimizer of kind ", static_cast<int>(kind));
}

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          std::shared_ptr<FlatParameters> parameters,
                                          ops::Kernels kernels, int64_t seed) {
  return entry_of(config.kind).make(config, std::move(parameters), kernels, seed);
}

int64_t optimizer_bytes_per_parameter(const OptimizerConfig& config) {
  const int64_t bytes = config.state == StateDtype::kBf16 ? 2 : 4;
  return entry_of(config.kind).numbers_per_parameter * bytes;
}

}  // namespace stablemask
