#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/io/safetensors.h"

namespace stablemask {

/// Folder `step-N` (N zero-padded to 8 digits): model.safetensors, optimizer.safetensors,
/// state.json, config.json, tokenizer.model, manifest.json (size and SHA-256 of each other file;
/// written last).
struct CheckpointContent {
  int64_t step = 0;
  std::map<std::string, TensorView> model;
  std::map<std::string, TensorView> optimizer;  ///< empty: weights only
  std::string state_json;
  std::string config_json;
  std::string tokenizer_model;  ///< bytes of the SentencePiece file; empty: none
};

struct Retention {
  int64_t keep_last = 2;   ///< ≥ 1
  int64_t keep_every = 0;  ///< also keep steps that are multiples of this; 0: none
};

/// Writes `root/step-N.tmp-<id>`, fsyncs every file, manifest last, renames, fsyncs `root`, points
/// `root/LATEST` to it (temp, rename, fsync), then applies retention, which counts complete
/// checkpoints only and never removes the newest complete one. Checks free space first. On failure
/// it removes its own temporary folder, leaves every older checkpoint, and throws CheckpointError.
/// Returns the final folder.
std::string save_checkpoint(const std::string& root, const CheckpointContent& content,
                            const Retention& retention);

/// An opened, verified checkpoint folder.
struct Checkpoint {
  std::string folder;
  int64_t step = 0;
  SafetensorsFile model;
  std::optional<SafetensorsFile> optimizer;
  std::string state_json;
  std::string config_json;
  std::string tokenizer_model;
};

/// Checks the manifest and every hash, then opens. Throws CheckpointError naming the file and what
/// is wrong with it.
Checkpoint load_checkpoint(const std::string& folder);

/// The newest checkpoint under `root` that verifies: LATEST's, or the next older one with a warning
/// that says why. nullopt when `root` has no checkpoint at all; CheckpointError when it has some
/// but none verifies.
std::optional<Checkpoint> load_latest_checkpoint(const std::string& root);

struct CheckpointSummary {
  std::string folder;
  int64_t step = 0;
  bool complete = false;  ///< named step-N and has a manifest
  uint64_t bytes = 0;
};
/// Ascending by step; temporary folders of dead writers included as incomplete.
std::vector<CheckpointSummary> list_checkpoints(const std::string& root);

/// Every problem found, one line each; empty: sound.
std::vector<std::string> verify_checkpoint(const std::string& folder);

/// Accepts a checkpoint folder, or a run/root folder and then picks the newest complete checkpoint.
std::string resolve_checkpoint(const std::string& path);

/// Replaces `path` by `content` through a temporary file, fsync and rename.
void write_file_atomically(const std::string& path, const std::string& content);

}  // namespace stablemask
