#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "stablemask/nn/linear.h"

namespace stablemask::nn {

/// The token embedding and, with learned positions, the table of their vectors. Copies share the
/// weights, which the model registers.
class Embedding {
 public:
  Embedding() = default;
  explicit Embedding(Linear tokens, Linear positions = {})
      : tokens_(std::move(tokens)), positions_(std::move(positions)) {}

  const Linear& tokens() const { return tokens_; }

  /// ids int64 [...] → [..., C]. `positions`, int64, are those of the ids, of a shape that can be
  /// expanded to theirs; read only with learned positions, and outside the table taken for its
  /// first or last row: such ids must be padding.
  at::Tensor forward(const at::Tensor& ids, const at::Tensor& positions,
                     ops::Kernels kernels) const;

 private:
  Linear tokens_, positions_;
};

}  // namespace stablemask::nn
