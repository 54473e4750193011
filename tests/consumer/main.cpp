#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstdio>

#include "stablemask/base/error.h"
#include "stablemask/config/config.h"
#include "stablemask/ops/stable_mask.h"
#include "stablemask/train/trainer.h"

using namespace stablemask;

// With gamma = 0 and p_base = 0 row i has N − 1 − i pseudo slots of weight 1: log S_0 = log(N − 1).
bool mask_is_right() {
  const ops::PseudoScores pseudo{
      at::zeros({1}), at::zeros({1}), {ops::MaskLength::Kind::kFixed, 8}};
  const float log_mass = ops::log_pseudo_mass(pseudo, 4).const_data_ptr<float>()[0];
  std::printf("log S_0 = %.6f\n", log_mass);
  return std::abs(log_mass - std::log(7.0F)) < 1e-5F;
}

// Reaches through every layer down to the tokenizer's library.
bool training_without_data_is_refused() {
  try {
    Trainer trainer(parse_config("{}", "empty"), {});
  } catch (const ConfigError& error) {
    std::printf("%s\n", error.what());
    return true;
  }
  return false;
}

int main() { return mask_is_right() && training_without_data_is_refused() ? 0 : 1; }
