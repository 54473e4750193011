#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stablemask/config/config.h"

/// What `eval` and `generate` report about the model that they run.
namespace stablemask::commands {

/// Whether a sequence of `rows` rows has rows at or beyond a fixed mask length.
bool has_rows_beyond(const ModelConfig& model, int64_t rows);

/// Warns, when a sequence of `rows` rows has rows beyond the mask length, that they have no pseudo
/// mass by the checkpoint's config (beyond "none"). Silent when one of the overrides
/// ("path.to.field=value") states model.stable_mask.beyond. Returns whether it warned.
bool warn_rows_without_mass(const ModelConfig& model, const std::vector<std::string>& overrides,
                            int64_t rows);

/// The warnings about a text of up to `tokens` tokens: that of warn_rows_without_mass, else one
/// when the text goes on past the training context where the model, by its position encoding and
/// window, does not (docs/stablemask.md has the measurements).
void warn_long_text(const Config& config, const std::vector<std::string>& overrides,
                    int64_t tokens);

/// Adds the fields "mask", "attention_window", "position", "rope_theta", "rope_scaling" and
/// "context" (docs/formats.md).
void add_model_fields(const Config& config, nlohmann::ordered_json& json);

/// Two lines, "model" and "mask", for the report.
std::string model_lines(const Config& config);

}  // namespace stablemask::commands
