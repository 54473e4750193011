#include "stablemask/nn/rope_tables.h"

#include "stablemask/ops/functional.h"

namespace stablemask::nn {
namespace {

int64_t next_power_of_two(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

}  // namespace

at::Tensor RopeTables::from_start(int64_t length, at::Device device) {
  const bool fits =
      !tables_.empty() && tables_.back().size(0) >= length && tables_.back().device() == device;
  if (!fits) {
    tables_.push_back(ops::rope_table(next_power_of_two(length), config_.resolved_rope_dims(),
                                      config_.rope_theta, config_.rope_scaling)
                          .to(device));
  }
  return tables_.back();
}

}  // namespace stablemask::nn
