#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

#include "stablemask/ops/adapter.h"
#include "stablemask/ops/fp8_linear.h"
#include "stablemask/ops/functional.h"

namespace stablemask::nn {

/// The step and the rows of a forward pass, for the dropout of adapters (ops::Dropout).
struct DropoutStep {
  at::Tensor key;         ///< undefined: no dropout
  int64_t first_row = 0;  ///< of the pass, counted over the whole step
};

/// Linear layer, y = x · Wᵀ + b, W [out, in], b [out] or none. It is the only code of nn that
/// multiplies by a weight, so changes to that product (precision, an adapter, sharding) are made
/// here. Weight and bias are registered by the module that owns the layer; copies of a Linear share
/// them.
///
/// `add_to`, `rotated` and `swiglu` combine the product with an elementwise op and use the fused
/// kernels of ops/functional.h; with a bias or an adapter they are several ops. With an adapter
/// y = x · Wᵀ + scale · D(x) · (B·A)ᵀ + b, and weight and bias, which must not require gradients,
/// are constants.
///
/// While fp8()->active (nn/fp8.h) the products without an adapter are those of ops/fp8_linear.h.
class Linear {
 public:
  Linear() = default;
  explicit Linear(const at::Tensor& weight, at::Tensor bias = {})
      : weight_(ops::Weight::tracked(weight)),
        bias_(std::move(bias)),
        fp8_(c10::make_intrusive<ops::fp8::Projection>()) {}

  /// Adds an adapter with factors a and b (ops/adapter.h); `dropout` says what D is, but for the
  /// step, which each call states.
  void adapt(ops::Adapter adapter, const ops::Dropout& dropout) {
    adapter_ = std::move(adapter);
    dropout_ = dropout;
  }

  bool defined() const { return weight_.defined(); }
  const at::Tensor& weight() const { return weight_.tensor(); }
  const at::Tensor& bias() const { return bias_; }             ///< undefined: none
  const ops::fp8::ProjectionPtr& fp8() const { return fp8_; }  ///< shared by copies

  /// x [..., in] → [..., out].
  at::Tensor forward(const ops::Input& x, ops::Kernels kernels, const DropoutStep& step = {}) const;
  /// residual [..., out] + forward(x).
  at::Tensor add_to(const at::Tensor& residual, const ops::Input& x, ops::Kernels kernels,
                    const DropoutStep& step = {}) const;
  /// x [B,T,in] → [B,T,packed_heads,D] with rotary embedding on the first `heads_rotated` heads.
  at::Tensor rotated(const ops::Input& x, int64_t packed_heads, int64_t heads_rotated,
                     const ops::RopeInputs& rope, ops::Kernels kernels,
                     const DropoutStep& step = {}) const;
  /// residual + down.forward(silu(gate) · up), (gate, up) = up.forward(x).
  static at::Tensor swiglu(const Linear& up, const Linear& down, const ops::Input& x,
                           const at::Tensor& residual, ops::Kernels kernels,
                           const DropoutStep& step = {});

  /// `forward` and `swiglu`, with x as residual, of ops::rms_norm(x, norm, eps): fewer kernels for
  /// few rows.
  at::Tensor normed(const at::Tensor& x, const at::Tensor& norm, double eps,
                    ops::Kernels kernels) const;
  static at::Tensor normed_swiglu(const Linear& up, const Linear& down, const at::Tensor& x,
                                  const at::Tensor& norm, double eps, ops::Kernels kernels);

  /// Embedding lookup: ids int64 [...] → rows of the weight [..., in].
  at::Tensor lookup(const at::Tensor& ids, ops::Kernels kernels) const;
  /// Language-model head, without bias, on x [rows, in], targets int64 [rows]:
  /// ops::linear_cross_entropy (0-dim) and ops::linear_nll (fp32 [rows]).
  at::Tensor loss(const at::Tensor& x, const at::Tensor& targets, const at::Tensor& scale,
                  double z_loss, ops::HeadGradient head_gradient, ops::Kernels kernels) const;
  at::Tensor nll(const at::Tensor& x, const at::Tensor& targets, ops::Kernels kernels) const;

  /// Call before the first forward and after the last backward of a training step (ops/weight.h).
  void begin_gradient() const;
  void finish_gradient() const;

 private:
  /// Whether the product is that of the weight alone, so that the fused kernels compute it.
  bool plain() const { return !bias_.defined() && !adapter_.defined(); }
  bool in_fp8() const { return fp8_ && fp8_->active; }
  ops::Dropout dropout(const DropoutStep& step) const;
  /// Weight and adapter.
  ops::AdaptedWeight adapted(const DropoutStep& step) const {
    return {weight(), adapter_, dropout(step)};
  }
  /// The product without bias, added to `addend` if that is defined.
  at::Tensor product(const ops::Input& x, const at::Tensor& addend, ops::Kernels kernels,
                     const DropoutStep& step) const;

  ops::Weight weight_;
  at::Tensor bias_;
  ops::fp8::ProjectionPtr fp8_;  ///< null: no weight
  ops::Adapter adapter_;         ///< undefined: none
  ops::Dropout dropout_;
};

}  // namespace stablemask::nn
