#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/report/metrics.h"

namespace stablemask {

class FlatParameters;
class Optimizer;
namespace dist {
class Group;
}
namespace nn {
class Transformer;
}
namespace ops {
enum class Kernels;
}

enum class ResumePolicy { kAuto, kNever, kFolder };

/// Returns false to stop the run at this step. As after a stop signal, the validation and the
/// metrics that this step is due are still done and a checkpoint is saved. An exception ends the
/// run too: it passes through Trainer::run, which saves a checkpoint first.
using MetricsCallback = std::function<bool(const StepMetrics& metrics)>;

struct RunOptions {
  ResumePolicy resume = ResumePolicy::kAuto;
  std::string resume_folder;  ///< kFolder: a checkpoint, or a run folder for its newest checkpoint
  bool quiet = false;         ///< no progress on stdout

  /// Called on the thread of Trainer::run after every step, before the step's validation and before
  /// its line in metrics.jsonl; without valid_loss, and with the peak memory of this process.
  MetricsCallback on_step;
  /// Called after the metrics of a step were recorded: every train.log_every steps and after every
  /// validation, then with valid_loss.
  MetricsCallback on_record;
  /// Receive the metrics as metrics.jsonl does, and the samples. Used by process 0 only.
  std::vector<std::shared_ptr<MetricsSink>> sinks;
  /// Makes the optimizer instead of optim/optimizer.h's make_optimizer.
  std::function<std::unique_ptr<Optimizer>(const OptimizerConfig&, std::shared_ptr<FlatParameters>,
                                           ops::Kernels)>
      make_optimizer;
  /// The processes that train together; null: this process alone. dist/connect.h makes the group;
  /// its device is that of select_device(config.train.device, local_rank).
  std::shared_ptr<dist::Group> group;
  int64_t local_rank = 0;  ///< of this process among those of the group on this machine
};

struct RunResult {
  int64_t step = 0;              ///< the last step done, in this process or an earlier one
  bool finished = false;         ///< all steps done, and the last one validated and recorded
  bool out_of_patience = false;  ///< ended by train.patience before its last step
  double last_loss = 0;          ///< nats per token of the last step
  double valid_loss = 0;         ///< of the last validation; NaN if there was none
  int64_t best_step = 0;         ///< of the lowest validation loss; 0: none
  double best_loss = 0;          ///< of step best_step; NaN if there is none
  double tokens_per_second = 0;  ///< since the start of this run(), without validation and saving
  int64_t skipped = 0;           ///< steps skipped because loss or gradient norm was not finite
  int signal = 0;                ///< the signal that stopped the run; 0: none
  std::string checkpoint;        ///< folder of the newest checkpoint
};

/// Pretraining and finetuning in the run folder `config.train.out`:
///   config.json         the resolved config
///   metrics.jsonl       report/metrics.h, each step once, also after a resume
///   samples.jsonl       with train.sample_prompts: texts drawn after each validation
///   tensorboard/        with train.tensorboard: report/tensorboard.h
///   checkpoints/step-N  io/checkpoint.h
///   .lock               held while a process trains in the folder
/// A fresh run creates the files after its first step; if it fails before that, the folder stays as
/// it was.
///
/// Resume: with equal config, shards and number of threads, losses and weights are bit for bit
/// those of an uninterrupted run, wherever and however often the run was stopped. This holds on one
/// kind of CPU and LibTorch build; on a GPU with train.deterministic. All checkpoints can be
/// resumed, including the last one of a finished run.
///
/// A run that train.patience has ended stays ended when it is resumed, until train.patience is
/// raised or 0.
///
/// Checkpoints are saved every train.save_every steps, every train.save_minutes minutes, at the
/// end, and when the run is stopped by a signal, train.time_limit_s, a callback or an exception.
/// After an exception the checkpoint holds the last completed step; it is left out only if the
/// exception came while the weights were being updated.
///
/// A loss or gradient norm that is not finite never reaches a weight; train.non_finite selects
/// between stopping, with a checkpoint of the step before, and skipping the step.
///
/// Several processes (RunOptions::group) train one model: each makes a Trainer with an equal config
/// and calls run(). Micro-batches are dealt out to them in turn, so a step trains on the same
/// sequences whatever their number, and its result differs by rounding only; for one number of
/// processes the promises above hold. A checkpoint can be resumed with any number. Process 0 alone
/// writes, prints and fills the sinks. Stop signals, callbacks that return false and time limits in
/// any process stop all of them after the same step; each calls its own callbacks. A process that
/// cannot read its batches makes all of them save and end. An exception that only one of them meets
/// ends the others with PeerLostError; those save nothing, since each had a part of the state.
///
/// Before each save: when the run folder or .lock is gone or another one, CheckpointError, and
/// nothing is written; when the tokens of a training shard were overwritten, DataError, and the
/// steps since the checkpoint before are not saved; for a validation shard DataError after the
/// save. A shard that was replaced by another file is a warning, since the run has the old one
/// open.
///
/// Settings of the process that a Trainer changes: LibTorch's number of threads (train.threads > 0)
/// and its deterministic mode (train.deterministic). Trainers may follow one another in a process.
class Trainer {
 public:
  /// Checks all inputs before it writes anything: tokenizer, shards, device, the checkpoint to
  /// resume from and its config, that all of this is equal in all processes, and that the disk has
  /// room for the checkpoints and logs of the run. Throws
  /// ConfigError, DataError, CheckpointError, OutOfMemoryError, PeerLostError, and Stopped
  /// (base/stop.h) if a stop signal comes before there is anything to save.
  Trainer(const Config& config, const RunOptions& options);
  ~Trainer();
  /// Trains up to step config.train.steps, or to the one that train.epochs or train.tokens comes
  /// to, or until it is stopped; call once. A stop signal that
  /// ended the run is reported in RunResult::signal and then cleared (request_stop(0)). Throws
  /// NonFiniteError, CheckpointError, DataError, OutOfMemoryError, PeerLostError, and what a
  /// callback throws.
  RunResult run();
  /// The model that is trained, on its device, in the compute dtype; after run(), with the trained
  /// weights, also where checkpoints hold averages of them (train.ema_decay). It stays valid
  /// without the Trainer.
  nn::Transformer model() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The config of a finetuning run: as load_config, where the model fields that neither the file nor
/// an override states are those of the checkpoint that the run resumes from by `options`, or else
/// of the one named by train.init_from (a checkpoint or run folder). Throws ConfigError for stated
/// model fields that need other parameters than the checkpoint has (those of a learnable mask may
/// be added) or that it has learned. A mask that is turned on in a model without has the defaults
/// where its fields are not stated. For a run that does not resume, logs the fields that differ
/// from the source, and what rows beyond a mask length shorter than train.context do; with
/// `options.quiet` only the warning that they have no pseudo mass.
Config load_finetune_config(const std::string& path, const std::vector<std::string>& overrides = {},
                            const RunOptions& options = {});

/// The text of `pretrain --dry-run`, computed without allocating the model: parameters, FLOPs per
/// token, estimates of memory (of one of `processes` processes), checkpoint size, space on disk
/// that the run needs and that is free, steps, tokens and epochs. Throws as the constructor does
/// for the tokenizer and the shards, and for a batch that cannot be split among the processes.
std::string dry_run_report(const Config& config, int64_t processes = 1);

}  // namespace stablemask
