#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <utility>

namespace stablemask::ops {

/// Whether the gradient buffer of a weight still holds values of an earlier step.
struct GradientMark : c10::intrusive_ptr_target {
  bool stale = false;
};

/// A weight as the ops take it: a matrix and where its gradient goes. Copies share both.
///
/// Where `tensor().grad()` is undefined, the gradient is returned to autograd. Where it is defined,
/// backward passes accumulate into it in place, in its own dtype (fp32 views of a flat buffer, also
/// beside bf16 weights). A training step saves the memset and the read of that buffer:
/// `begin_gradient` before the first forward declares its contents stale, the first op that
/// produces a gradient overwrites them (GEMM with beta = 0), later ones add, and `finish_gradient`
/// after the last backward zeroes a buffer that no op has written.
class Weight {
 public:
  Weight() = default;
  /// Implicit: any tensor is a weight, without the bookkeeping of a training step.
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

  /// Weights without a gradient buffer, frozen ones for example, ignore both calls.
  void begin_gradient() const {
    if (mark_) mark_->stale = tensor_.requires_grad() && tensor_.grad().defined();
  }
  void finish_gradient() const;

 private:
  at::Tensor tensor_;
  c10::intrusive_ptr<GradientMark> mark_;
};

}  // namespace stablemask::ops
