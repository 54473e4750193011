#pragma once

#include "stablemask/optim/optimizer.h"

namespace stablemask {

/// AdamW with the arithmetic of ops::adamw_. State: first and second moment in fp32, named
/// "m.PARAMETER" and "v.PARAMETER".
std::unique_ptr<Optimizer> make_adamw(const OptimizerConfig& config,
                                      std::shared_ptr<FlatParameters> parameters,
                                      ops::Kernels kernels);
constexpr int64_t kAdamWBytesPerParameter = 8;

}  // namespace stablemask
