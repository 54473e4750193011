#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stablemask/nn/model.h"

namespace stablemask {

/// train.mask_warmup_steps: in step t of the first n the pseudo mass of a model's rows is t / n of
/// the configured one, that is p_base + log(t / n); from step n on it is exactly that one. A
/// function of the step alone, so that a resumed run goes on with it.
class MaskWarmup {
 public:
  /// `steps`: n; 0: the model is left as it is. `done`: steps done so far, whose mask is set for a
  /// validation before the next step.
  MaskWarmup(nn::Transformer model, at::Device device, int64_t steps, int64_t done);

  /// Sets the mask of step `step`, counted from 1, and of what follows. A recorded step and a
  /// recorded evaluation read it from device memory.
  void begin(int64_t step);

 private:
  int64_t steps_;
  at::Tensor log_factor_;  ///< fp32 0-dim; undefined: no warm-up
};

}  // namespace stablemask
