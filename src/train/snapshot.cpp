#include "src/train/snapshot.h"

#include <ATen/ATen.h>

#include "stablemask/base/error.h"
#include "stablemask/infer/weights.h"
#include "stablemask/nn/parameters.h"

namespace stablemask {

HostTensors::HostTensors(const std::map<std::string, at::Tensor>& tensors) {
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor host = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
    views_[name] = {ElementType::kF32, host.sizes().vec(), host.const_data_ptr()};
    kept_.push_back(host);
  }
}

namespace {

void restore(FlatParameters& flat, const std::map<std::string, at::Tensor>& wanted,
             const Checkpoint& checkpoint) {
  for_each_tensor(
      wanted, checkpoint.model, checkpoint.folder + "/model.safetensors",
      [&](const std::string& name, const at::Tensor& host) { flat.set_master(name, host); });
}

}  // namespace

void restore_weights(FlatParameters& flat, const Checkpoint& checkpoint) {
  restore(flat, flat.named_weights(), checkpoint);
}

void take_weights(FlatParameters& flat, const Checkpoint& source, const ModelConfig& model) {
  std::map<std::string, at::Tensor> wanted = flat.named_weights();
  for (const nn::Parameter& parameter : nn::parameters(model)) {
    const bool is_new =
        parameter.role == nn::Role::kMask && !source.model.tensors().contains(parameter.name);
    if (is_new) wanted.erase(parameter.name);
  }
  restore(flat, wanted, source);
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
