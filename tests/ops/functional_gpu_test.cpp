#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "stablemask/ops/device.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/optimizer.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/bf16_moments.h"
#include "tests/ops/functional_cases.h"

namespace stablemask::ops {
namespace {

using testing::Case;
using testing::compare;
using testing::evaluate;
using testing::Evaluation;
using testing::ExactUpdates;
using testing::integers;
using testing::large_cases;
using testing::normal;
using testing::relative_error;
using testing::small_cases;
using testing::Tensors;

class GpuFunctional : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(GpuFunctional, KernelsAreAsAccurateAsTheFormula) {
  for (const auto& cases : {small_cases(), large_cases()}) {
    for (const Case& c : cases) {
      compare(c, at::kFloat, 1e-6, at::kCUDA);
      compare(c, at::kBFloat16, 4e-3, at::kCUDA);
    }
  }
}

TEST_F(GpuFunctional, KernelsRunOnTheGpuOfTheirTensors) {
  if (gpu_count() < 2) GTEST_SKIP() << "needs two GPUs";
  for (const Case& c : small_cases()) compare(c, at::kFloat, 1e-6, {at::kCUDA, 1});
  for (const Case& c : large_cases()) compare(c, at::kBFloat16, 4e-3, {at::kCUDA, 1});
}

TEST_F(GpuFunctional, Bf16WeightsAccumulateIntoFp32Gradients) {
  for (const Case& c : large_cases()) {
    SCOPED_TRACE(c.name);
    const at::Tensor direction = normal(c.formula(c.inputs).sizes(), 7);
    const Evaluation want = evaluate(c.op, c.inputs, direction, at::kBFloat16, at::kCUDA);
    Tensors leaves, buffers;
    for (const at::Tensor& x : c.inputs) {
      const at::Tensor moved = x.detach().to(at::kCUDA);
      leaves.push_back(x.is_floating_point() ? moved.to(at::kBFloat16).requires_grad_() : moved);
      buffers.push_back(x.is_floating_point() ? at::ones_like(moved, at::kFloat) : at::Tensor());
      if (buffers.back().defined()) leaves.back().mutable_grad() = buffers.back();
    }
    const at::Tensor value = c.op(leaves);
    for (int repeat = 0; repeat < 2; ++repeat) {
      value.backward(direction.to(value.options()), /*retain_graph=*/true);
    }
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (!buffers[i].defined()) continue;
      EXPECT_TRUE(leaves[i].grad().is_same(buffers[i])) << "input " << i;
      EXPECT_LT(relative_error((buffers[i] - 1) / 2, want.grads[i]), 1e-2) << "input " << i;
    }
  }
}

TEST_F(GpuFunctional, LossMatchesTheCpu) {
  const at::Tensor x = normal({337, 40}, 1, at::kFloat), weight = normal({1009, 40}, 2, at::kFloat);
  const at::Tensor targets = integers(1009, {337}, 3);
  targets[5] = -100;
  const at::Tensor got = linear_nll(x.cuda(), weight.cuda(), targets.cuda());
  EXPECT_LT(relative_error(got, linear_nll(x, weight, targets)), 1e-6);
}

TEST_F(GpuFunctional, OptimizerMatchesTheCpu) {
  const at::Tensor grad = normal({100003}, 3, at::kFloat);
  Tensors results;
  for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kCUDA)}) {
    const at::Tensor start = normal({100003}, 1, at::kFloat).to(device);
    at::Tensor m = at::zeros_like(start), v = at::zeros_like(start);
    SplitWeights weights = split_weights(start);
    for (int64_t step = 1; step <= 3; ++step) {
      at::Tensor control = update_control(1e-2, step).to(device);
      const at::Tensor norm = sum_of_squares(grad.to(device)).sqrt();
      set_grad_scale_(control, at::zeros({}, start.options()), norm, 10.0);
      adamw_(weights.rounded, weights.remainder, m, v, grad.to(device), {0.9, 0.95, 1e-8, 0.1},
             control);
    }
    results.push_back(join_weights(weights));
  }
  EXPECT_LT(relative_error(results[1], results[0]), 1e-6);
}

TEST_F(GpuFunctional, Bf16MomentsHaveTheBitsOfTheCpu) {
  for (const int64_t size : {1, 3, 4, 1023, 300007}) {
    for (const int64_t first : {int64_t{0}, (int64_t{1} << 32) - 5}) {
      for (const int64_t skipped : {0, 1}) {  // 1: no pointer is aligned
        if (skipped == size) continue;
        for (const bool split : {false, true}) {
          ExactUpdates cpu(size, first), gpu(size, first, at::kCUDA);
          for (ExactUpdates* run : {&cpu, &gpu}) {
            if (split) run->split();
            run->part(skipped, size).run(Kernels::kFused);
          }
          const std::string what = c10::str(size, " from ", first, " without ", skipped);
          EXPECT_TRUE(gpu.m.cpu().equal(cpu.m)) << what;
          EXPECT_TRUE(gpu.v.cpu().equal(cpu.v)) << what;
          EXPECT_LT(relative_error(gpu.joined(), cpu.joined()), 1e-6) << what;
        }
      }
    }
  }
}

}  // namespace
}  // namespace stablemask::ops
