#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
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

/// x [..., in], the input of an adapted product. Where x = rms_norm(source, norm, eps)
/// (functional.h), bit for bit, the product keeps `source` for its backward, which the norm keeps
/// anyway, and computes x again there.
struct Input {
  Input(at::Tensor x_in) : x(std::move(x_in)) {}  // NOLINT(google-explicit-constructor)
  Input(at::Tensor x_in, at::Tensor source_in, at::Tensor norm_in, double eps_in)
      : x(std::move(x_in)), source(std::move(source_in)), norm(std::move(norm_in)), eps(eps_in) {}

  at::Tensor x;
  at::Tensor source, norm;  ///< undefined: x itself is kept
  double eps = 0;
};

/// [residual +] x · Wᵀ + adapter.scale · D(x) · (B·A)ᵀ, x [..., in], weight [out, in], D the
/// dropout (identity if it does not drop), residual [..., out] or undefined. `weight` is constant:
/// it gets no gradient. The gradients of the factors are accumulated as ops/weight.h describes.
at::Tensor adapted_linear(const Input& x, const at::Tensor& weight, const Adapter& adapter,
                          const Dropout& dropout = {}, const at::Tensor& residual = {},
                          Kernels kernels = Kernels::kFused);

/// ops::rope_linear (functional.h) of the adapted product, in one kernel where rope_linear is.
at::Tensor adapted_rope_linear(const Input& x, const at::Tensor& weight, const Adapter& adapter,
                               const Dropout& dropout, int64_t packed_heads, int64_t heads_rotated,
                               const RopeInputs& rope, Kernels kernels = Kernels::kFused);

struct AdaptedWeight {
  at::Tensor weight;  ///< constant
  Adapter adapter;
  Dropout dropout;
};

/// ops::swiglu_feed_forward of adapted products, with kernels as that has. Its backward computes
/// silu(gate) · up again instead of keeping it.
at::Tensor adapted_swiglu_feed_forward(const Input& x, const AdaptedWeight& up,
                                       const AdaptedWeight& down, const at::Tensor& residual,
                                       Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops
