#pragma once

#include <cstdint>
#include <vector>

#include "stablemask/ops/optimizer.h"
#include "tests/ops/checks.h"

namespace stablemask::ops::testing {

/// Updates with bf16 moments whose fp32 moments are rounded once whatever the order and fusion of
/// the operations, so that all implementations have the same bits: decays are powers of 2 or sums
/// of two, gradients integers of 11 bits.
struct ExactUpdates {
  static constexpr int64_t kSteps = 4;

  ExactUpdates(int64_t size, int64_t first, at::Device device = at::kCPU)
      : weights(normal({size}, 1, at::kFloat).to(device)),
        m(at::zeros({size}, weights.options().dtype(at::kBFloat16))),
        v(at::zeros_like(m)) {
    args = {0.5, 0.75, 1e-8, 0.1, /*seed=*/7, first};
    for (uint64_t step = 1; step <= kSteps; ++step) {
      const at::Tensor whole = integers(2047, {size}, 10 + step) - 1023;
      grads.push_back((whole.to(at::kFloat) / 256).to(device));
    }
  }

  void split() {
    const SplitWeights pair = split_weights(weights);
    weights = pair.rounded;
    remainder = pair.remainder;
  }

  /// The elements [begin, end), which share memory with these.
  ExactUpdates part(int64_t begin, int64_t end) const {
    ExactUpdates some = *this;
    for (at::Tensor* x : {&some.weights, &some.m, &some.v, &some.remainder}) {
      if (x->defined()) *x = x->slice(0, begin, end);
    }
    for (at::Tensor& grad : some.grads) grad = grad.slice(0, begin, end);
    some.args.first += begin;
    return some;
  }

  void run(Kernels kernels, int64_t steps = kSteps) {
    for (int64_t step = 1; step <= steps; ++step) {
      adamw_(weights, remainder, m, v, grads[step - 1], args,
             update_control(1e-2, step).to(weights.device()), kernels);
    }
  }

  at::Tensor joined() const {
    return remainder.defined() ? join_weights({weights, remainder}) : weights;
  }

  at::Tensor weights, remainder, m, v;
  std::vector<at::Tensor> grads;
  AdamWArgs args;
};

}  // namespace stablemask::ops::testing
