#pragma once

#include <cstdint>

#include "stablemask/config/config.h"

namespace stablemask {

/// Learning rate of update `step` (from 1) of `steps`: linear warm-up to `peak` at warmup_steps,
/// then by kind down to peak·final_lr_ratio at the last step. A pure function.
double learning_rate(const ScheduleConfig& schedule, double peak, int64_t step, int64_t steps);

}  // namespace stablemask
