#include "src/train/mask_warmup.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "stablemask/nn/stable_mask.h"

namespace stablemask {

MaskWarmup::MaskWarmup(nn::Transformer model, at::Device device, int64_t steps, int64_t done)
    : steps_(steps) {
  if (steps == 0) return;
  log_factor_ = at::zeros({}, at::TensorOptions(at::kFloat).device(device));
  nn::scale_pseudo_mass(*model, log_factor_);
  begin(done);
}

void MaskWarmup::begin(int64_t step) {
  if (!log_factor_.defined() || step > steps_) return;  // the factor is 1 since step n
  const auto t = static_cast<double>(std::max<int64_t>(step, 1));
  log_factor_.fill_(std::log(t / static_cast<double>(steps_)));
}

}  // namespace stablemask
