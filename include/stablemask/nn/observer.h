#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stablemask/ops/attention.h"

namespace stablemask::nn {

/// Receives intermediate values of a forward pass (ForwardArgs::observer), on the host before what
/// follows is enqueued. Legend: ops/stable_mask.h. The tensors may be overwritten after the call
/// returns.
class ForwardObserver {
 public:
  virtual ~ForwardObserver() = default;
  /// Before block `layer` attends: the packed projection [B,T,H+2·Hkv,D] with queries and keys
  /// normalised (qk_norm) and rotated (RoPE), and the options of its attention. With a KV cache
  /// only the new tokens are in it.
  virtual void attention(int64_t layer, const at::Tensor& packed,
                         const ops::AttentionOptions& options) = 0;
  /// Residual stream [B,T,C]. Point 0: before block 0; l + 1: after block l; after the last one:
  /// the output of the final norm. When a backward has computed the gradient of point l, for
  /// example in a hook on `x`, it has enqueued those of all matrices that are multiplied after the
  /// point: of blocks l and higher and of a head that is not tied.
  virtual void hidden(int64_t point, const at::Tensor& x) = 0;
};

}  // namespace stablemask::nn
