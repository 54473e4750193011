#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

/// Shared by the tests of ops: seeded inputs, gradients, and ways to check a kernel: central
/// differences, the error against fp64, and errors of arguments.
namespace stablemask::ops::testing {

using Tensors = std::vector<at::Tensor>;
using Function = std::function<at::Tensor(const Tensors&)>;

/// Standard normal numbers, the same on every machine.
inline at::Tensor normal(at::IntArrayRef sizes, uint64_t seed,
                         at::TensorOptions options = at::kDouble) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble).to(options);
}

/// Integers in [0, high).
inline at::Tensor integers(int64_t high, at::IntArrayRef sizes, uint64_t seed) {
  return at::randint(high, sizes, at::detail::createCPUGenerator(seed), at::kLong);
}

/// ‖a − b‖ / ‖b‖ in fp64; infinite when `a` contains NaN. ‖b‖ is at least 0.01 per element, so that
/// results that cancel to almost 0 are not compared by their rounding noise.
inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble);
  const at::Tensor y = b.detach().to(at::kCPU, at::kDouble);
  const double error = (x - y).norm().item<double>(), size = y.norm().item<double>();
  if (std::isnan(error)) return std::numeric_limits<double>::infinity();
  return error / std::max(size, 1e-2 * std::sqrt(static_cast<double>(y.numel()) + 1));
}

/// Value of f and gradients of ⟨f, direction⟩ at copies of the inputs in `type`.
struct Evaluation {
  at::Tensor value;
  Tensors grads;  ///< undefined for integer inputs
};

inline Evaluation evaluate(const Function& f, const Tensors& inputs, const at::Tensor& direction,
                           at::ScalarType type, at::Device device = at::kCPU) {
  Tensors leaves, wanted;
  for (const at::Tensor& x : inputs) {
    leaves.push_back(x.is_floating_point() ? x.detach().to(device, type).requires_grad_()
                                           : x.to(device));
    if (x.is_floating_point()) wanted.push_back(leaves.back());
  }
  Evaluation result{f(leaves), {}};
  Tensors grads =
      torch::autograd::grad({result.value}, wanted, {direction.to(result.value.options())});
  for (size_t i = 0, next = 0; i < inputs.size(); ++i) {
    result.grads.push_back(inputs[i].is_floating_point() ? grads[next++] : at::Tensor());
  }
  result.value = result.value.detach();
  return result;
}

/// Compares autograd's gradients of f with central differences in fp64.
inline void check_gradients(const Function& f, const Tensors& inputs, double tolerance = 2e-7) {
  const at::Tensor direction = normal(f(inputs).sizes(), 99);
  const Evaluation exact = evaluate(f, inputs, direction, at::kDouble);
  constexpr double kStep = 1e-5;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].is_floating_point()) continue;
    Tensors moved = inputs;
    moved[i] = inputs[i].clone();
    const at::Tensor flat = moved[i].view({-1});
    const at::Tensor numeric = at::zeros_like(flat);
    for (int64_t e = 0; e < flat.numel(); ++e) {
      const double centre = flat[e].item<double>();
      flat[e] = centre + kStep;
      const double above = (f(moved) * direction).sum().item<double>();
      flat[e] = centre - kStep;
      const double below = (f(moved) * direction).sum().item<double>();
      flat[e] = centre;
      numeric[e] = (above - below) / (2 * kStep);
    }
    EXPECT_LE(relative_error(exact.grads[i].reshape({-1}), numeric), tolerance) << "input " << i;
  }
}

/// Expects the kernel's error to be at most twice that of `plain`, the formula in the same dtype,
/// plus eps; `truth` is fp64.
inline void expect_as_accurate(const at::Tensor& kernel, const at::Tensor& plain,
                               const at::Tensor& truth, double eps, const std::string& what) {
  EXPECT_LE(relative_error(kernel, truth), 2 * relative_error(plain, truth) + eps) << what;
}

/// `work` throws c10::Error with `piece` in its message.
template <typename Work>
void refused(const std::string& piece, const Work& work) {
  try {
    work();
    ADD_FAILURE() << "not refused: " << piece;
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_NE(message.find(piece), std::string::npos) << message << "\nlacks " << piece;
  }
}

}  // namespace stablemask::ops::testing
