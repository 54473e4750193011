#pragma once

#include <cstdint>
#include <string>

#include "stablemask/report/metrics.h"
#include "stablemask/report/samples.h"

namespace stablemask {

/// The records of a step of `storage_work train`.
inline StepMetrics metrics_of_step(int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.tokens = 64 * step;
  metrics.loss = metrics.loss_mean = 6.0 / static_cast<double>(step);
  return metrics;
}

inline Sample sample_of_step(int64_t step) {
  return {step, 1, "The river", " of step " + std::to_string(step)};
}

}  // namespace stablemask
