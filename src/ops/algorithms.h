#pragma once

#include "stablemask/ops/algorithms.h"

namespace stablemask::ops {

/// The exchange that set_algorithm_exchange() has set.
AlgorithmExchange algorithm_exchange();

/// Adds one GEMM to algorithm_trials().
void count_trial(double seconds);

}  // namespace stablemask::ops
