#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/base/file.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

/// The checkpoint that adapters belong to.
struct BaseReference {
  std::string folder;        ///< absolute, or relative to the working folder
  std::string model_sha256;  ///< of its model.safetensors
};

/// The files of a checkpoint, stored in a folder `step-N` (N zero-padded to 8 digits):
/// model.safetensors, optimizer.safetensors, state.json, config.json, tokenizer.model or
/// tokenizer.json with the files of other programs beside it, base.json where model.safetensors
/// holds adapters only, trained.safetensors where it holds averages, and manifest.json, written
/// last, with the size and SHA-256 of each of them and its own SHA-256.
struct CheckpointContent {
  int64_t step = 0;
  std::map<std::string, TensorView> model;
  std::map<std::string, StreamedTensor> streamed_model;  ///< in the place of `model`, if not empty
  std::map<std::string, TensorView> optimizer;           ///< empty: weights only
  bool averaged = false;                                 ///< `model` holds averages of weights
  std::map<std::string, TensorView> trained;  ///< which training goes on from; empty: `model`
  std::string state_json;
  std::string config_json;
  std::string tokenizer_model;  ///< bytes of the tokenizer's file; empty: none
  /// Files that go with a foreign tokenizer, by name: Tokenizer::companion_names().
  std::map<std::string, std::string> tokenizer_companions;
  std::optional<BaseReference> base;  ///< of adapters
};

/// The name under which a tokenizer of these bytes is kept: tokenizer.json for JSON, else
/// tokenizer.model.
const char* tokenizer_file_name(const std::string& bytes);

/// Bytes hashed so far and in all.
using HashProgress = std::function<void(uint64_t done, uint64_t total)>;

struct Retention {
  int64_t keep_last = 2;   ///< ≥ 1
  int64_t keep_every = 0;  ///< also keep steps that are multiples of this; 0: none
  int64_t best = 0;        ///< also keep this step, the run's best, and name it in BEST; 0: none
};

/// Saves a checkpoint as `root`/step-N and returns that folder. The steps:
///  1. remove temporary folders and files of killed processes under `root`;
///  2. check the free space;
///  3. write and fsync all files, the manifest last, in `root`/step-N.tmp-<id>;
///  4. rename it to step-N and fsync `root`. An existing step-N is exchanged for the new folder in
///     one system call and then removed; a file system without that call is an error;
///  5. write the name of the folder to `root`/LATEST, and that of the best one, if there is one and
///     it is complete, to `root`/BEST;
///  6. apply `retention`. It counts complete checkpoints only and keeps the newest complete one and
///     the one just written in any case.
/// Throws CheckpointError when steps 2 to 4 fail; the temporary folder is removed then, and older
/// checkpoints stay. Failures of steps 1, 5 and 6 are warnings. One writer per root at a time;
/// temporary folders are locked with flock while their writer lives.
std::string save_checkpoint(const std::string& root, const CheckpointContent& content,
                            const Retention& retention);

/// Writes the name of step `step` to `root`/BEST, if its checkpoint is complete and BEST names
/// another one. Throws CheckpointError.
void name_best_checkpoint(const std::string& root, int64_t step);

/// Writes a checkpoint as the new folder `folder`, whose parent exists. It appears complete or not
/// at all. Throws CheckpointError, also when something of that name exists and when the name is
/// that of another step.
void write_checkpoint(const std::string& folder, const CheckpointContent& content);

/// Writes the checkpoint folder `from` without optimizer.safetensors and trained.safetensors as the
/// new folder `to`, whose parent exists: a checkpoint to evaluate, to generate with and to finetune
/// from, a third of the size. Every file it reads is checked against its hash. `to` appears
/// complete or not at all. Throws CheckpointError, also when something named `to` exists;
/// NonFiniteError as require_finite_weights (io/finite.h).
void strip_checkpoint(const std::string& from, const std::string& to,
                      const HashProgress& progress = {});

/// Names of the complete checkpoints under `root`, oldest first, that save_checkpoint with this
/// `retention` would remove when it saves a later step.
std::vector<std::string> removed_by_next_save(const std::string& root, const Retention& retention);

/// The content of a verified checkpoint folder, in memory.
struct Checkpoint {
  std::string folder;
  int64_t step = 0;
  SafetensorsFile model;
  std::optional<SafetensorsFile> optimizer;  ///< absent when not saved or not asked for
  /// The weights that training goes on from; absent where they are `model`, or not asked for.
  std::optional<SafetensorsFile> trained;
  std::string model_path;  ///< of the file that `model` was read from
  bool averaged = false;   ///< `model` holds averages of weights
  std::string state_json;
  std::string config_json;
  std::string tokenizer_model;
  std::map<std::string, std::string> tokenizer_companions;
  std::string base_json;     ///< of adapters (io/base_checkpoint.h); empty: a whole model
  std::string model_sha256;  ///< of model.safetensors
};

/// model.safetensors has the weights to use. In the checkpoints of a run with train.ema_decay these
/// are averages; trained.safetensors has the weights that training goes on from.
enum class CheckpointParts {
  kAll,
  kWithoutOptimizer,  ///< neither optimizer.safetensors nor trained.safetensors is opened, and both
                      ///< may be absent: a third of the time and memory
  kTrainedWeights,    ///< the same, with trained.safetensors as `model` where model.safetensors has
                      ///< averages
};
/// Which weights of a checkpoint are used: the averages, where there are any, or the trained ones.
enum class WeightKind { kAveraged, kTrained };
constexpr CheckpointParts parts_with(WeightKind kind) {
  return kind == WeightKind::kTrained ? CheckpointParts::kTrainedWeights
                                      : CheckpointParts::kWithoutOptimizer;
}

/// Opens all files, checks the manifest and every hash, and reads what it has hashed; a removal of
/// the folder has no effect once the files are open. `progress` is called from the calling thread
/// about ten times a second while the files are hashed, and with done = total at the end. Throws
/// CheckpointError naming the file and what is wrong with it; with kTrainedWeights also for
/// averages whose trained weights were left out.
Checkpoint load_checkpoint(const std::string& folder, CheckpointParts parts = CheckpointParts::kAll,
                           const HashProgress& progress = {});

/// Text of a checkpoint's config.json, its hash checked; of the other files only the manifest is
/// read. Throws CheckpointError.
std::string read_checkpoint_config(const std::string& folder);

/// The SHA-256 of a checkpoint's model.safetensors that its manifest states; nothing else is read.
/// Throws CheckpointError.
std::string read_checkpoint_model_sha256(const std::string& folder);

/// The newest checkpoint under `root` that verifies; for each newer one that does not, a warning
/// with the reason. nullopt when `root` has no checkpoint at all; CheckpointError when it has some
/// but none verifies, or when a newer one was written by a newer version of the program. Looks at
/// the folders and ignores LATEST, which is for people and scripts and may be one save behind after
/// a crash.
std::optional<Checkpoint> load_latest_checkpoint(const std::string& root,
                                                 CheckpointParts parts = CheckpointParts::kAll,
                                                 const HashProgress& progress = {});

struct CheckpointSummary {
  std::string folder;
  int64_t step = 0;
  bool complete = false;  ///< named step-N and has a manifest
  uint64_t bytes = 0;
};
/// Ascending by step; temporary folders of dead writers included as incomplete.
std::vector<CheckpointSummary> list_checkpoints(const std::string& root);

/// The problems of a checkpoint folder, one line each; empty when there is none.
std::vector<std::string> verify_checkpoint(const std::string& folder,
                                           const HashProgress& progress = {});

/// The folder that holds the step-N folders: `path`/checkpoints when that exists, else `path`.
std::string checkpoint_root(const std::string& path);

/// The checkpoint folder that a user means by `path`: `path` if it is one, else the newest complete
/// checkpoint of a run folder or of its checkpoints folder; RUN/best is the one that BEST names.
/// CheckpointError otherwise; for a folder
/// of runs the message lists them.
std::string resolve_checkpoint(const std::string& path);

/// Calls `read` with resolve_checkpoint(path). A run that is training removes older checkpoints:
/// when `read` throws CheckpointError and the folder is gone, the newest one of then is tried,
/// unless `path` is the folder itself.
void with_checkpoint(const std::string& path,
                     const std::function<void(const std::string& folder)>& read);

}  // namespace stablemask
