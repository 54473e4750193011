#pragma once

#include <optional>
#include <string>

#include "stablemask/io/checkpoint.h"

namespace stablemask {

/// Text of base.json of a checkpoint `folder` with adapters of `base`: the path of the base from
/// that folder, its absolute path, and the SHA-256 of its model.safetensors.
std::string base_json(const BaseReference& base, const std::string& folder);

/// The checkpoint that base.json of `adapters` names, at the first of the two paths that has a
/// model of that SHA-256, so that base and adapters can be moved together; where neither has, at
/// the absolute one. nullopt for the checkpoint of a whole model. Throws CheckpointError for a
/// damaged base.json.
std::optional<BaseReference> recorded_base(const Checkpoint& adapters);

/// recorded_base. Throws CheckpointError when neither path has that model.
std::optional<BaseReference> find_base(const Checkpoint& adapters);

/// The checkpoint find_base(adapters), without optimizer state. Throws as find_base, and
/// NonFiniteError as require_finite_weights.
std::optional<Checkpoint> load_base(const Checkpoint& adapters, const HashProgress& progress = {});

}  // namespace stablemask
