#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "stablemask/base/error.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kTrainedFile = "trained.safetensors";
constexpr const char* kStateFile = "state.json";
constexpr const char* kConfigFile = "config.json";
constexpr const char* kTokenizerFile = "tokenizer.model";
constexpr const char* kTokenizerJsonFile = "tokenizer.json";
/// Files of other programs that go with a tokenizer; of tokenizer.model also tokenizer.json.
constexpr const char* kTokenizerCompanions[] = {"tokenizer_config.json", "special_tokens_map.json",
                                                "added_tokens.json", "chat_template.jinja"};
constexpr const char* kBaseFile = "base.json";
constexpr const char* kManifestFile = "manifest.json";
/// In the metadata of a model.safetensors that holds averages of weights.
constexpr const char* kWeightsKey = "weights";
constexpr const char* kAveragedWeights = "averaged";

/// manifest.json of a checkpoint folder:
///
///     {"format": "stablemask-checkpoint", "version": 1, "step": N,
///      "files": {NAME: {"bytes": B, "sha256": H}, …},
///      "sha256": H of this text without this field}
///
/// indented by two spaces, in this order, files sorted by name. Any other spelling is refused, so
/// that a change of any bit is noticed.
struct Manifest {
  int64_t step = 0;
  std::map<std::string, FileDigest> files;
};

/// A checkpoint that a later version of the program wrote. Not damage: an older checkpoint must not
/// take its place.
struct NewerVersionError : CheckpointError {
  using CheckpointError::CheckpointError;
};

std::string render_manifest(const Manifest& manifest);

/// Throws NewerVersionError for a later version, whatever else the text has; CheckpointError
/// "PATH: …" for a text that render_manifest does not produce, for an unknown file name, and when a
/// file that every checkpoint has is not listed.
Manifest parse_manifest(const std::string& text, const std::string& path);

}  // namespace stablemask
