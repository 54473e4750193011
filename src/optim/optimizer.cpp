#include "stablemask/optim/optimizer.h"

#include <c10/util/Exception.h>

#include <utility>

#include "src/optim/adamw.h"

namespace stablemask {
namespace {

struct Kind {
  OptimizerKind kind;
  int64_t bytes_per_parameter;
  std::unique_ptr<Optimizer> (*make)(const OptimizerConfig& config,
                                     std::shared_ptr<FlatParameters> parameters,
                                     ops::Kernels kernels);
};

constexpr Kind kKinds[] = {
    {OptimizerKind::kAdamW, kAdamWBytesPerParameter, make_adamw},
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
                                          ops::Kernels kernels) {
  return entry_of(config.kind).make(config, std::move(parameters), kernels);
}

int64_t optimizer_bytes_per_parameter(OptimizerKind kind) {
  return entry_of(kind).bytes_per_parameter;
}

}  // namespace stablemask
