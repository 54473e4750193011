#include "stablemask/optim/optimizer.h"

#include <c10/util/Exception.h>

#include <utility>

#include "src/optim/adamw.h"
#include "src/optim/muon.h"

namespace stablemask {

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          std::shared_ptr<FlatParameters> parameters,
                                          ops::Kernels kernels, int64_t seed) {
  switch (config.kind) {
    case OptimizerKind::kAdamW:
      return make_adamw(config, std::move(parameters), kernels, seed);
    case OptimizerKind::kMuon:
      return make_muon(config, std::move(parameters), kernels, seed);
  }
  TORCH_INTERNAL_ASSERT(false, "no optimizer of kind ", static_cast<int>(config.kind));
}

OptimizerBytes optimizer_bytes(const OptimizerConfig& config, const nn::Parameter& parameter,
                               int64_t element) {
  const int64_t count = parameter.numel();
  if (config.kind == OptimizerKind::kMuon && parameter.role == nn::Role::kProjection) {
    return {kMuonBytesPerParameter * count, element * count};
  }
  const int64_t moment = config.state == StateDtype::kBf16 ? 2 : 4;
  return {kAdamWNumbersPerParameter * moment * count, 0};
}

}  // namespace stablemask
