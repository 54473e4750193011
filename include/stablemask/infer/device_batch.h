#pragma once

#include <ATen/core/Tensor.h>

#include "stablemask/data/batch.h"

namespace stablemask {

/// A batch as tensors on the model's device. On the CPU they are views of the batch, which must
/// outlive them.
struct DeviceBatch {
  DeviceBatch(const Batch& batch, at::Device device);
  /// Overwrites the values with those of a batch of the same shape. The addresses stay, so that a
  /// recorded CUDA graph reads the new values.
  void copy_from(const Batch& batch);
  at::Tensor tokens, targets;  ///< int64 [B,T]
  at::Tensor document_start;   ///< int64 [B,T], or undefined
};

}  // namespace stablemask
