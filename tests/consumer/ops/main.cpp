#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstdio>

#include "stablemask/ops/stable_mask.h"

using namespace stablemask;

// With gamma = 0 and p_base = 0 row i has N − 1 − i pseudo slots of weight 1: log S_0 = log(N − 1).
int main() {
  const ops::PseudoScores pseudo{
      at::zeros({1}), at::zeros({1}), {ops::MaskLength::Kind::kFixed, 8}};
  const float log_mass = ops::log_pseudo_mass(pseudo, 4).const_data_ptr<float>()[0];
  std::printf("log S_0 = %.6f\n", log_mass);
  return std::abs(log_mass - std::log(7.0F)) < 1e-5F ? 0 : 1;
}
