#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

#include "stablemask/ops/kernels.h"
#include "stablemask/ops/weight.h"

/// Shared by the ops of functional.h: argument checks and the accumulation of weight gradients.
namespace stablemask::ops {

inline at::ScalarType math_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// weight.grad(), or an undefined tensor for a weight that has none.
inline at::Tensor existing_grad(const at::Tensor& weight) {
  return weight.is_leaf() ? weight.grad() : at::Tensor();
}

using Mark = c10::intrusive_ptr<GradientMark>;

/// Whether the buffer of this gradient is stale; clears the mark. The caller must then overwrite
/// the buffer.
inline bool take_stale(const Mark& mark) { return mark && std::exchange(mark->stale, false); }

/// Carries a mark from the forward of an autograd function to its backward.
struct MarkHolder : torch::CustomClassHolder {
  explicit MarkHolder(Mark mark_in) : mark(std::move(mark_in)) {}
  Mark mark;
};
inline void save_mark(torch::autograd::AutogradContext* ctx, const char* key, const Mark& mark) {
  if (mark) ctx->saved_data[key] = c10::IValue::make_capsule(c10::make_intrusive<MarkHolder>(mark));
}
inline Mark load_mark(torch::autograd::AutogradContext* ctx, const char* key) {
  const auto found = ctx->saved_data.find(key);
  if (found == ctx->saved_data.end()) return {};
  return c10::static_intrusive_pointer_cast<MarkHolder>(found->second.toCapsule())->mark;
}

/// The buffer that a kernel adds a weight gradient to, fp32 (fp64 for fp64): weight.grad() if it
/// has that dtype and is contiguous (zeroed first when stale), otherwise new zeros. returned() is
/// the gradient to return to autograd: undefined when weight.grad() was updated in place.
class GradSink {
 public:
  explicit GradSink(const at::Tensor& weight, const Mark& mark = {}) : type_(weight.scalar_type()) {
    buffer = existing_grad(weight);
    if (buffer.defined() && take_stale(mark)) buffer.zero_();
    const at::ScalarType math = math_type(weight);
    in_place_ = buffer.defined() && buffer.scalar_type() == math && buffer.is_contiguous();
    if (!in_place_) buffer = at::zeros(weight.sizes(), weight.options().dtype(math));
  }
  at::Tensor returned() const { return in_place_ ? at::Tensor() : buffer.to(type_); }

  at::Tensor buffer;

 private:
  at::ScalarType type_;
  bool in_place_;
};

/// `grad` itself if nothing else refers to its memory, so that it can be overwritten; else a copy.
inline at::Tensor writable(const at::Tensor& grad) {
  const bool unshared = grad.use_count() == 1 && grad.storage().use_count() == 1;
  return unshared && grad.is_contiguous() ? grad : grad.clone(at::MemoryFormat::Contiguous);
}

/// dw = dyᵀ · x + beta·dw, beta 0 or 1; dy [rows, out], x [rows, in] of one dtype, dw [out, in] of
/// that dtype or fp32.
void accumulate_gemm(at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x, double beta,
                     Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops
