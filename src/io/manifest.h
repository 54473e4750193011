#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "stablemask/base/error.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kStateFile = "state.json";
constexpr const char* kConfigFile = "config.json";
constexpr const char* kTokenizerFile = "tokenizer.model";
constexpr const char* kManifestFile = "manifest.json";

/// manifest.json of a checkpoint folder:
///
///     {"format": "stablemask-checkpoint", "version": 1, "step": N,
///      "files": {NAME: {"bytes": B, "sha256": H}, …},
///      "sha256": H of this text without this field}
///
/// indented by two spaces, in this order, files by name. Every other spelling is refused, so that
/// no bit of it can change unnoticed.
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
/// "PATH: …" for anything that render_manifest did not write, for a file that is not one of a
/// checkpoint's, and when one that every checkpoint has is absent.
Manifest parse_manifest(const std::string& text, const std::string& path);

}  // namespace stablemask
