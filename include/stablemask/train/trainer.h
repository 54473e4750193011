#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask {

enum class ResumePolicy { kAuto, kNever, kFolder };

struct RunOptions {
  ResumePolicy resume = ResumePolicy::kAuto;
  std::string resume_folder;  ///< kFolder: a checkpoint, or a run and then its newest checkpoint
  bool quiet = false;
  std::function<void(int64_t step)> on_step;  ///< called after every step, before it is recorded
};

struct RunResult {
  int64_t step = 0;              ///< the last step done, of this run or of the one resumed
  bool finished = false;         ///< all train.steps done, and the last one validated
  double last_loss = 0;          ///< nats per token of the last step
  double valid_loss = 0;         ///< of the last validation; NaN if there was none
  double tokens_per_second = 0;  ///< of this process's steps, without validation and saving
  int64_t skipped = 0;           ///< non-finite steps skipped
  int signal = 0;                ///< 0, or the signal that stopped the run (a checkpoint was saved)
  std::string checkpoint;        ///< folder of the newest checkpoint
};

/// Pretraining and finetuning under the run folder `config.train.out`, which a fresh run leaves as
/// it was until its first step has worked:
///   config.json         the resolved config
///   metrics.jsonl       train/metrics.h, each step once, also after a resume
///   checkpoints/step-N  io/checkpoint.h; the last one is as resumable as any
///   .lock               held while a process trains here
/// Same config, shards and threads: the same losses and weights, bit for bit on the CPU (on a GPU
/// with train.deterministic), no matter how often and where the run was stopped and resumed.
///
/// A loss or gradient norm that is not finite never reaches a weight: train.non_finite decides
/// between stopping (with a checkpoint of the step before) and skipping the step.
class Trainer {
 public:
  /// Checks every input before it writes anything: tokenizer, shards (payload hashes, made by this
  /// tokenizer), device, the checkpoint to resume from and its config. Throws ConfigError,
  /// DataError, CheckpointError, OutOfMemoryError.
  Trainer(const Config& config, const RunOptions& options);
  ~Trainer();
  /// Trains up to config.train.steps, a stop signal or the time limit; call once. Throws
  /// NonFiniteError, CheckpointError, OutOfMemoryError.
  RunResult run();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The config of a finetuning run: as load_config, with the model section of the checkpoint that
/// the run goes on from by `options`, or else of the one train.init_from names (a checkpoint or run
/// folder). A model key that the file or an override states must equal the checkpoint's, else
/// ConfigError.
Config load_finetune_config(const std::string& path, const std::vector<std::string>& overrides = {},
                            const RunOptions& options = {});

/// What `pretrain --dry-run` prints, without allocating the model: parameters, FLOPs per token,
/// memory and checkpoint size estimates, steps, tokens and epochs. Throws as the constructor does
/// for the tokenizer and the shards.
std::string dry_run_report(const Config& config);

}  // namespace stablemask
