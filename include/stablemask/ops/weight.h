#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <utility>

namespace stablemask::ops {

/// Whether the gradient buffer of a weight holds values of an earlier step.
struct GradientMark : c10::intrusive_ptr_target {
  bool stale = false;
};

/// A weight matrix as an argument of the ops, with a mark that says whether its gradient buffer is
/// stale. Copies share tensor and mark.
///
/// If tensor().grad() is undefined, the gradient is returned to autograd. If it is defined,
/// backward passes accumulate into it in place and in its dtype, such as an fp32 view of a flat
/// buffer beside a bf16 weight. A training step can avoid zeroing and reading the buffer:
/// begin_gradient, before the first forward, declares its contents stale; the first op that
/// computes a gradient overwrites them (GEMM with beta = 0) and later ops accumulate;
/// finish_gradient, after the last backward, zeroes a buffer that no op has written.
class Weight {
 public:
  Weight() = default;
  /// Implicit: any tensor is a weight, without a mark: gradients always accumulate.
  Weight(at::Tensor tensor) : tensor_(std::move(tensor)) {}  // NOLINT(google-explicit-constructor)
  /// With a mark, for begin_gradient and finish_gradient.
  static Weight tracked(at::Tensor tensor) {
    Weight weight(std::move(tensor));
    weight.mark_ = c10::make_intrusive<GradientMark>();
    return weight;
  }

  const at::Tensor& tensor() const { return tensor_; }
  const c10::intrusive_ptr<GradientMark>& mark() const { return mark_; }
  bool defined() const { return tensor_.defined(); }

  /// Both do nothing for weights without a gradient buffer, such as frozen ones.
  void begin_gradient() const {
    if (mark_) mark_->stale = tensor_.requires_grad() && tensor_.grad().defined();
  }
  void finish_gradient() const;

 private:
  at::Tensor tensor_;
  c10::intrusive_ptr<GradientMark> mark_;
};

}  // namespace stablemask::ops
