#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/StringUtil.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

/// Shared by the tests of CUDA kernels: inputs on the GPU and error bounds.
namespace stablemask::testing_gpu {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline at::TensorOptions gpu(at::ScalarType type) {
  return at::TensorOptions().device(at::kCUDA).dtype(type);
}

inline at::Tensor random(at::IntArrayRef shape, at::ScalarType type, double scale = 1.0) {
  return (at::randn(shape, gpu(at::kFloat)) * scale).to(type);
}

/// An output tensor filled with NaN, to detect elements that a kernel does not write.
inline at::Tensor poisoned(at::IntArrayRef shape, at::ScalarType type) {
  return at::full(shape, kNan, gpu(type));
}

inline at::Tensor wide(const at::Tensor& x) { return x.detach().to(at::kDouble); }

/// max |x − truth| / max |truth|.
inline double error(const at::Tensor& x, const at::Tensor& truth) {
  const at::Tensor difference = (wide(x).reshape({-1}) - wide(truth).reshape({-1})).abs().max();
  return (difference / wide(truth).abs().max().clamp_min(1e-30)).item<double>();
}

/// Expects the kernel's error against fp64 to be at most twice that of LibTorch's operators in the
/// same dtype, plus 1e-6. NaN fails.
inline void expect_as_exact(const at::Tensor& kernel, const at::Tensor& eager,
                            const at::Tensor& truth, const std::string& what) {
  constexpr double kSlack = 1e-6;
  EXPECT_LE(error(kernel, truth), 2.0 * error(eager, truth) + kSlack) << what;
}

inline std::string describe(const char* what, at::IntArrayRef shape, at::ScalarType type) {
  return c10::str(what, " ", shape, " ", type);
}

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (c10::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(20240701);
  }
};

}  // namespace stablemask::testing_gpu
