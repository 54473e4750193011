#pragma once

#include <functional>
#include <string>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask {

/// Gives the model that stands in for the defaults of the section "model". `draft` has the stated
/// values of all sections, unresolved and not yet compared with each other.
using ModelSource = std::function<ModelConfig(const Config& draft)>;

/// As load_config, but the fields of `model` that neither the file nor an override states have the
/// values of the source's model. Stated values that stand for another field follow the result:
/// gamma "auto" the source's position encoding (unless one is stated), mask_length "context" the
/// train.context of this config. Throws ConfigError as load_config and what `source` throws.
Config load_config_with_model(const std::string& path, const std::vector<std::string>& overrides,
                              const ModelSource& source);

}  // namespace stablemask
