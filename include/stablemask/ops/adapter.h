#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "stablemask/ops/functional.h"
#include "stablemask/ops/kernels.h"
#include "stablemask/ops/weight.h"

namespace stablemask::ops {

/// Low-rank adapter of a frozen weight W [out, in] (LoRA, Hu et al., arXiv 2106.09685). The rows of
/// W are those of k consecutive matrices W_j, such as the query, key and value projections, each
/// with factors of its own: W_j becomes W_j + scale · B_j · A_j.
struct Adapter {
  Weight a;                   ///< [k·r, in]: A_1 … A_k below each other
  Weight b;                   ///< [out, r]: B_1 … B_k below each other
  std::vector<int64_t> rows;  ///< of each W_j; their sum is out
  double scale = 1;

  bool defined() const { return a.defined(); }
};

/// Which elements of an adapter's input x [rows, in] are set to 0 in a training step, the others
/// being divided by 1 − share. A function of the members and of the element's index alone, so it is
/// the same when a pass is repeated and however the rows of a step are split into passes.
struct Dropout {
  double share = 0;    ///< in [0, 1)
  int64_t stream = 0;  ///< other elements for each adapter
  at::Tensor key;  ///< int64, 0-dim, on x's device, another one in each step; undefined: no dropout
  int64_t first_row = 0;  ///< index of x's first row in the step

  bool drops() const { return share > 0 && key.defined(); }
};

/// [residual +] x · Wᵀ + adapter.scale · D(x) · (B·A)ᵀ, x [..., in], weight [out, in], D the
/// dropout (identity if it does not drop), residual [..., out] or undefined. `weight` is constant:
/// it gets no gradient. The gradients of the factors are accumulated as ops/weight.h describes.
at::Tensor adapted_linear(const at::Tensor& x, const at::Tensor& weight, const Adapter& adapter,
                          const Dropout& dropout = {}, const at::Tensor& residual = {},
                          Kernels kernels = Kernels::kFused);

/// ops::rope_linear (functional.h) of the adapted product, in one kernel where rope_linear is.
at::Tensor adapted_rope_linear(const at::Tensor& x, const at::Tensor& weight,
                               const Adapter& adapter, const Dropout& dropout, int64_t packed_heads,
                               int64_t heads_rotated, const RopeInputs& rope,
                               Kernels kernels = Kernels::kFused);

struct AdaptedWeight {
  at::Tensor weight;  ///< constant
  Adapter adapter;
  Dropout dropout;
};

/// ops::swiglu_feed_forward of adapted products, with kernels as that has.
at::Tensor adapted_swiglu_feed_forward(const at::Tensor& x, const AdaptedWeight& up,
                                       const AdaptedWeight& down, const at::Tensor& residual,
                                       Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops
