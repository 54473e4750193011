#pragma once

#include "stablemask/optim/optimizer.h"

namespace stablemask {

/// AdamW with the arithmetic of ops::adamw_, of what `cover` names. Buffers: first moment "m" and
/// second moment "v", in config.state.
std::unique_ptr<Optimizer> make_adamw(const OptimizerConfig& config,
                                      std::shared_ptr<FlatParameters> parameters,
                                      ops::Kernels kernels, int64_t seed,
                                      Cover cover = Cover::kAll);
constexpr int64_t kAdamWNumbersPerParameter = 2;

}  // namespace stablemask
