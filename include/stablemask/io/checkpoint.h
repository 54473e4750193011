#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/base/file.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

/// Folder `step-N` (N zero-padded to 8 digits): model.safetensors, optimizer.safetensors,
/// state.json, config.json, tokenizer.model, manifest.json (size and SHA-256 of each other file,
/// and of itself; written last).
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

/// Removes what dead writers left under `root`, checks the free space, writes
/// `root/step-N.tmp-<id>`, fsyncs every file, manifest last, renames, fsyncs `root`, points
/// `root/LATEST` to it (temp, rename, fsync), then applies retention, which counts complete
/// checkpoints only and never removes the newest complete one, nor the one just written. A `step-N`
/// that exists is exchanged for the new one in one step and then removed, so that there always is
/// one; where the file system cannot exchange, it is refused.
/// On failure it removes its own temporary folder, leaves every older checkpoint, and throws
/// CheckpointError. What cannot be removed afterwards is a warning. Returns the final folder.
/// One writer per root at a time; temporary names are locked (flock) while their writer lives.
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

enum class CheckpointParts {
  kAll,
  kWithoutOptimizer,  ///< optimizer.safetensors is not opened and may be absent: a third of the
                      ///< time and memory
};

/// Checks the manifest and every hash, then opens. Throws CheckpointError naming the file and what
/// is wrong with it.
Checkpoint load_checkpoint(const std::string& folder,
                           CheckpointParts parts = CheckpointParts::kAll);

enum class DamageWarnings {
  kAlways,
  kIfNoneIsSound,  ///< for a first look, behind which the same is loaded again
};

/// The newest checkpoint under `root` that verifies; for each newer one that does not, a warning
/// that says why. nullopt when `root` has no checkpoint at all; CheckpointError when it has some
/// but none verifies, or when a newer one was written by a newer version of the program. Goes by
/// the folders, not by LATEST, which is for people and scripts: a crash between the two renames of
/// a save loses nothing.
std::optional<Checkpoint> load_latest_checkpoint(const std::string& root,
                                                 CheckpointParts parts = CheckpointParts::kAll,
                                                 DamageWarnings warnings = DamageWarnings::kAlways);

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

/// The folder with the checkpoints: `path`/checkpoints when `path` is a run folder, else `path`.
std::string checkpoint_root(const std::string& path);

/// Accepts a checkpoint folder, or a run/root folder and then picks the newest complete checkpoint.
/// CheckpointError otherwise; of a folder that holds run folders it lists these.
std::string resolve_checkpoint(const std::string& path);

}  // namespace stablemask
