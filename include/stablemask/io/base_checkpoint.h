#pragma once

#include <optional>
#include <string>

#include "stablemask/io/checkpoint.h"

namespace stablemask {

/// Text of base.json of a checkpoint whose adapters belong to the model of `base`: the absolute
/// path of its folder and the SHA-256 of its model.safetensors.
std::string base_json(const Checkpoint& base);

/// The folder that base.json of a checkpoint of adapters names. CheckpointError for a damaged one.
std::string base_folder(const Checkpoint& adapters);

/// The checkpoint that `adapters` belongs to, without optimizer state; nullopt for the checkpoint
/// of a whole model. Throws CheckpointError when it is not where base.json says, when its model is
/// another one, and for a damaged base.json; NonFiniteError as require_finite_weights.
std::optional<Checkpoint> load_base(const Checkpoint& adapters, const HashProgress& progress = {});

}  // namespace stablemask
