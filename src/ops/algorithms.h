#pragma once

#include "stablemask/ops/algorithms.h"

namespace stablemask::ops {

/// The exchange that set_algorithm_exchange() has set.
AlgorithmExchange algorithm_exchange();

}  // namespace stablemask::ops
