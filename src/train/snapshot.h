#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "stablemask/io/checkpoint.h"
#include "stablemask/train/state.h"

namespace stablemask {

/// Host copies (on the CPU: the buffers themselves) of named tensors, with the views that the
/// checkpoint writer takes; keeps them alive while they are written.
class HostTensors {
 public:
  explicit HostTensors(const std::map<std::string, at::Tensor>& tensors);
  const std::map<std::string, TensorView>& views() const { return views_; }

 private:
  std::vector<at::Tensor> kept_;
  std::map<std::string, TensorView> views_;
};

/// Fills the fp32 master weights from model.safetensors. Throws CheckpointError listing every
/// tensor that is missing, unexpected or of another shape or type.
void restore_weights(FlatState& state, const Checkpoint& checkpoint);

/// Weights and the optimizer's m and v. Throws CheckpointError also when the checkpoint holds
/// weights only.
void restore_training(FlatState& state, const Checkpoint& checkpoint);

}  // namespace stablemask
