#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>

#include "stablemask/ops/fp8.h"
#include "stablemask/ops/functional.h"

/// Projections whose three products (y, dx and dW) multiply fp8 matrices. The differentiable ops of
/// functional.h otherwise: legend, accumulation of weight gradients and errors as there. Of an
/// input the backward keeps the transposed fp8 values only.
namespace stablemask::ops::fp8 {

/// What the products of one projection y = x · Wᵀ share: scales and the weight's fp8 copies.
struct Projection : c10::intrusive_ptr_target {
  Slot input, weight, gradient;  ///< of x, W and dy
  Matrix copy;                   ///< of the weight [out, in], both parts
  /// Whether `copy` holds the present weight. The first product that needs it makes it.
  bool copied = false;
  /// Scale each tensor by its own maximum, in a second pass over it, instead of by a history.
  bool just_in_time = false;
  bool active = false;  ///< for the owner of the weight: whether products are in fp8
};
using ProjectionPtr = c10::intrusive_ptr<Projection>;

/// A weight with its fp8 state.
struct Fp8Weight {
  const Weight& weight;
  const ProjectionPtr& fp8;
};

/// x [..., in] · weightᵀ + residual → [..., out]; `residual` may be undefined. All rows of x
/// together, in and out are multiples of kMultiple.
at::Tensor linear(const at::Tensor& x, const Fp8Weight& weight, const at::Tensor& residual = {},
                  Kernels kernels = Kernels::kFused);

/// ops::rope_linear.
at::Tensor rope_linear(const at::Tensor& x, const Fp8Weight& weight, int64_t packed_heads,
                       int64_t heads_rotated, const RopeInputs& rope,
                       Kernels kernels = Kernels::kFused);

/// ops::swiglu_feed_forward.
at::Tensor swiglu_feed_forward(const at::Tensor& x, const Fp8Weight& up, const Fp8Weight& down,
                               const at::Tensor& residual, Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops::fp8
