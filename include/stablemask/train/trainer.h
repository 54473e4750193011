#pragma once

#include <memory>
#include <string>

#include "stablemask/base/config.h"

namespace stablemask {

enum class ResumePolicy { kAuto, kNever, kFolder };

struct RunOptions {
  ResumePolicy resume = ResumePolicy::kAuto;
  std::string resume_folder;  ///< kFolder
  bool quiet = false;
};

struct RunResult {
  int64_t step = 0;
  double last_loss = 0;        ///< nats per token of the last step
  double valid_loss = 0;       ///< of the last validation; NaN if there was none
  double tokens_per_second = 0;
  int signal = 0;              ///< 0, or the signal that stopped the run (a checkpoint was saved)
};

/// Pretraining and finetuning: the loop, validation, metrics.jsonl, checkpoints under
/// `config.train.out`. Throws Error.
class Trainer {
 public:
  Trainer(const Config& config, const RunOptions& options);
  ~Trainer();
  RunResult run();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// What `pretrain --dry-run` prints: parameters, FLOPs per token, memory and checkpoint size
/// estimates, steps and epochs.
std::string dry_run_report(const Config& config);

}  // namespace stablemask
