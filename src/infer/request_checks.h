#pragma once

#include <cstdint>

#include "stablemask/infer/generator.h"

namespace stablemask::infer {

/// Throws ConfigError for settings outside the ranges of the config's fields (docs/config.md).
void check_settings(const GenerateConfig& settings);

/// Settings, prompt and ids of a request. `model_ids`: ids of the model, which a prompt may have;
/// `drawn_ids`: ids that may be drawn. Throws ConfigError.
void check_request(const GenerateRequest& request, int64_t model_ids, int64_t drawn_ids);

}  // namespace stablemask::infer
