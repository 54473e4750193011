#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "src/ops/cpu_rows.h"
#include "src/ops/kernels.h"

namespace stablemask::ops::cpu {

void ema_(at::Tensor& average, const at::Tensor& weights, const at::Tensor& remainder, double decay,
          const at::Tensor& control) {
  const double* values = control.const_data_ptr<double>();
  const double t = values[1], grad_scale = values[2];
  if (grad_scale < 0) return;
  const auto rest = static_cast<float>(1.0 - std::min(decay, (1.0 + t) / (10.0 + t)));
  const bool split = remainder.defined();
  const auto* const whole = split ? nullptr : weights.const_data_ptr<float>();
  const auto* const rounded =
      split ? static_cast<const uint16_t*>(weights.const_data_ptr()) : nullptr;
  const auto* const low = split ? remainder.const_data_ptr<int16_t>() : nullptr;
  auto* const into = average.mutable_data_ptr<float>();
  constexpr int64_t kBlock = 16384;  // elements whose joined weights stay in the cache
  const int64_t size = weights.numel();
  at::parallel_for(0, (size + kBlock - 1) / kBlock, 2, [&](int64_t begin, int64_t end) {
    std::vector<float> joined(split ? static_cast<size_t>(kBlock) : 0);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, count = std::min(kBlock, size - first);
      if (split) rows::join(rounded + first, low + first, joined.data(), count);
      rows::approach(split ? joined.data() : whole + first, rest, into + first, count);
    }
  });
}

}  // namespace stablemask::ops::cpu
