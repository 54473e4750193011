#pragma once

#include "stablemask/config/config.h"

namespace stablemask {

/// Settings of LibTorch for the whole process: number of threads, if train.threads > 0, and
/// deterministic algorithms, on or off. Call before the first operator runs: cuBLAS reads its
/// environment variable once.
void configure_torch(const TrainConfig& train);

}  // namespace stablemask
