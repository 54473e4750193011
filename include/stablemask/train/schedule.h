#pragma once

#include <cstdint>

#include "stablemask/config/train_config.h"

namespace stablemask {

/// Learning rate of update `step` (from 1) of `steps`: linear warm-up to `peak` at warmup_steps,
/// then decay by kind to peak·final_lr_ratio at the last step. A warm-up or WSD decay that does not
/// fit into `steps` is shortened (ScheduleConfig::resolved_…).
double learning_rate(const ScheduleConfig& schedule, double peak, int64_t step, int64_t steps);

}  // namespace stablemask
