#pragma once

#include <ATen/core/Tensor.h>

#include "stablemask/ops/kernels.h"

/// Products of few rows without gradients, as in decoding, where reading the weight takes the time
/// (cuda/thin_gemm.h).
namespace stablemask::ops {

/// What a product is combined with; undefined tensors stand for nothing.
struct FewRows {
  at::Tensor residual;  ///< [..., out], added
  at::Tensor norm;      ///< [in]: the weight of an RMSNorm of x before the product
  double eps = 0;       ///< of that norm
  bool gated = false;   ///< swiglu of the product
};

/// The product x [..., in] · weight [out, in]ᵀ of arguments that have been checked, or an undefined
/// tensor if gradients are needed, the rows are many or there is no kernel for them.
at::Tensor few_rows_linear(const at::Tensor& x, const at::Tensor& weight, Kernels kernels,
                           const FewRows& options = {});

}  // namespace stablemask::ops
