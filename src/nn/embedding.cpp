#include "stablemask/nn/embedding.h"

#include <ATen/ATen.h>

namespace stablemask::nn {

at::Tensor Embedding::forward(const at::Tensor& ids, const at::Tensor& positions,
                              ops::Kernels kernels) const {
  const at::Tensor x = tokens_.lookup(ids, kernels);
  if (!positions_.defined()) return x;
  const at::Tensor rows = positions.clamp(0, positions_.weight().size(0) - 1);
  return x + positions_.lookup(rows.expand_as(ids), kernels);
}

}  // namespace stablemask::nn
