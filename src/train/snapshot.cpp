#include "src/train/snapshot.h"

#include <ATen/ATen.h>

#include "stablemask/base/error.h"
#include "stablemask/infer/weights.h"

namespace stablemask {

HostTensors::HostTensors(const std::map<std::string, at::Tensor>& tensors) {
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor host = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
    views_[name] = {ElementType::kF32, host.sizes().vec(), host.const_data_ptr()};
    kept_.push_back(host);
  }
}

void restore_weights(FlatParameters& flat, const Checkpoint& checkpoint) {
  for_each_tensor(
      flat.named_weights(), checkpoint.model, checkpoint.folder + "/model.safetensors",
      [&](const std::string& name, const at::Tensor& host) { flat.set_master(name, host); });
}

void restore_optimizer(Optimizer& optimizer, const Checkpoint& checkpoint) {
  if (!checkpoint.optimizer) {
    throw CheckpointError(checkpoint.folder +
                          ": has weights but no optimizer state; finetune from it with "
                          "train.init_from instead of resuming");
  }
  copy_tensors(optimizer.named_state(), *checkpoint.optimizer,
               checkpoint.folder + "/optimizer.safetensors");
}

}  // namespace stablemask
