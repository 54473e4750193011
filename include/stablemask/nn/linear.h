#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stablemask/ops/functional.h"

namespace stablemask::nn {

/// A linear layer without bias, y = x · Wᵀ, W [out, in]. The only place of this layer of the code
/// that multiplies by a weight: what changes a product (its precision, an adapter beside it, the
/// range of a weight that a process holds) changes here. The weight is registered by the module
/// that owns the layer; copies of a Linear share it.
///
/// `add_to`, `rotated` and `swiglu` are products followed by an elementwise op. They take fused
/// kernels where ops/functional.h has them.
class Linear {
 public:
  Linear() = default;
  explicit Linear(const at::Tensor& weight) : weight_(ops::Weight::tracked(weight)) {}

  bool defined() const { return weight_.defined(); }
  const at::Tensor& weight() const { return weight_.tensor(); }

  /// x [..., in] → [..., out].
  at::Tensor forward(const at::Tensor& x, ops::Kernels kernels) const;
  /// residual [..., out] + forward(x).
  at::Tensor add_to(const at::Tensor& residual, const at::Tensor& x, ops::Kernels kernels) const;
  /// x [B,T,in] → [B,T,packed_heads,D] with rotary embedding in the first `heads_rotated` heads.
  at::Tensor rotated(const at::Tensor& x, int64_t packed_heads, int64_t heads_rotated,
                     const ops::RopeInputs& rope, ops::Kernels kernels) const;
  /// residual + down.forward(silu(gate) · up), (gate, up) = up.forward(x).
  static at::Tensor swiglu(const Linear& up, const Linear& down, const at::Tensor& x,
                           const at::Tensor& residual, ops::Kernels kernels);

  /// Rows of the weight: ids int64 [...] → [..., in].
  at::Tensor lookup(const at::Tensor& ids, ops::Kernels kernels) const;
  /// As a language-model head over x [N, in]: ops::linear_cross_entropy and ops::linear_nll.
  at::Tensor loss(const at::Tensor& x, const at::Tensor& targets, const at::Tensor& scale,
                  double z_loss, ops::HeadGradient head_gradient, ops::Kernels kernels) const;
  at::Tensor nll(const at::Tensor& x, const at::Tensor& targets, ops::Kernels kernels) const;

  /// Before the first forward and after the last backward of a training step (ops/weight.h).
  void begin_gradient() const { weight_.begin_gradient(); }
  void finish_gradient() const { weight_.finish_gradient(); }

 private:
  ops::Weight weight_;
};

}  // namespace stablemask::nn
