#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <optional>
#include <string>

#include "stablemask/config/config.h"
#include "stablemask/io/checkpoint.h"

namespace stablemask {

/// for_each_tensor (infer/weights.h) of the weights that a checkpoint stands for. `base` is
/// load_base(checkpoint): with one, W + alpha / rank · B · A in fp32 of each W that has an adapter,
/// and the base's tensor of each other one. `model` is that of the checkpoint's config. `wanted`
/// has the names of the model without adapters.
void for_each_weight(const std::map<std::string, at::Tensor>& wanted, const Checkpoint& checkpoint,
                     const std::optional<Checkpoint>& base, const ModelConfig& model,
                     const std::function<void(const std::string&, const at::Tensor&)>& take);

/// Writes the model that the adapter checkpoint `from` stands for as the new folder `to`: the
/// checkpoint of a whole model, without optimizer state. Throws CheckpointError when `from` holds
/// no adapters, and as load_base and write_checkpoint (io/checkpoint.h).
void merge_checkpoint(const std::string& from, const std::string& to,
                      WeightKind weights = WeightKind::kAveraged,
                      const HashProgress& progress = {});

}  // namespace stablemask
