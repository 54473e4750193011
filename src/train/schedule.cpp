#include "stablemask/train/schedule.h"

#include <algorithm>
#include <cmath>

namespace stablemask {
namespace {

/// From 1 at progress 0 down to `final` at progress 1.
double linear(double progress, double final) { return 1.0 - (1.0 - final) * progress; }

double cosine(double progress, double final) {
  constexpr double kPi = 3.14159265358979323846;
  return final + (1.0 - final) * 0.5 * (1.0 + std::cos(kPi * progress));
}

/// Fraction of the way from `begin` to `end` at `step`, within [0, 1].
double progress_between(int64_t step, int64_t begin, int64_t end) {
  if (end <= begin) return step > begin ? 1.0 : 0.0;
  return std::clamp(static_cast<double>(step - begin) / static_cast<double>(end - begin), 0.0, 1.0);
}

}  // namespace

double learning_rate(const ScheduleConfig& schedule, double peak, int64_t step, int64_t steps) {
  const int64_t warmup = schedule.resolved_warmup_steps(steps);
  if (step < warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  const double final = schedule.final_lr_ratio;
  switch (schedule.kind) {
    case ScheduleKind::kConstant:
      return peak;
    case ScheduleKind::kLinear:
      return peak * linear(progress_between(step, warmup, steps), final);
    case ScheduleKind::kCosine:
      return peak * cosine(progress_between(step, warmup, steps), final);
    case ScheduleKind::kWsd: {
      const int64_t begin = steps - schedule.resolved_decay_steps(steps);
      return step <= begin ? peak : peak * linear(progress_between(step, begin, steps), final);
    }
  }
  return peak;
}

}  // namespace stablemask
