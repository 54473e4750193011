#pragma once

#include <ATen/core/Tensor.h>

#include "stablemask/ops/device.h"

/// Matrix products on the CPU of fp32 tensors, with operands rounded to bf16 and fp32 sums.
namespace stablemask::ops::cpu {

/// A factor of a product and whether it is taken transposed.
struct Factor {
  const at::Tensor& matrix;  ///< fp32, 2-dim, rows contiguous
  bool transposed = false;
};

/// out = a·b, or out + a·b with `adds`; a [M,K], b [K,N] and out [M,N], fp32 with contiguous rows.
/// Factors are rounded to the nearest bf16, ties to even; products of two bf16 numbers are exact in
/// fp32 and added in fp32. With `instructions` for bf16 the bits do not depend on the number of
/// threads; without, the rounded factors are multiplied as fp32 matrices.
void bf16_product(at::Tensor& out, const Factor& a, const Factor& b, bool adds,
                  bool instructions = cpu_has_bf16());

}  // namespace stablemask::ops::cpu
