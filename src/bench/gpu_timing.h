#pragma once

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/ops/device.h"

namespace stablemask::bench {

using Run = std::function<void()>;

constexpr int kRepetitions = 30;

inline at::TensorOptions gpu(at::ScalarType type) {
  return at::TensorOptions().device(at::kCUDA).dtype(type);
}

/// Name of the GPU. Throws ConfigError if there is none that this build has kernels for.
inline std::string require_gpu() {
  const std::string problem = ops::cuda_problem();
  if (!problem.empty()) throw ConfigError("this benchmark needs a GPU: " + problem);
  return at::cuda::getCurrentDeviceProperties()->name;
}

/// ‖x − truth‖ / ‖truth‖, in fp32.
inline double difference(const at::Tensor& x, const at::Tensor& truth) {
  const at::Tensor exact = truth.to(at::kFloat);
  return ((x.to(at::kFloat) - exact).norm() / exact.norm()).item<double>();
}

/// Median milliseconds of kRepetitions runs, measured by CUDA events; `before` is not timed.
inline double median_ms(
    const Run& run, const Run& before = [] {}) {
  constexpr int kWarmUp = 5;
  std::vector<float> times;
  for (int i = -kWarmUp; i < kRepetitions; ++i) {
    before();
    at::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
    begin.record();
    run();
    end.record();
    end.synchronize();
    if (i >= 0) times.push_back(begin.elapsed_time(end));
  }
  std::nth_element(times.begin(), times.begin() + kRepetitions / 2, times.end());
  return times[kRepetitions / 2];
}

}  // namespace stablemask::bench
