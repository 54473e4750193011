#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "src/train/mask_warmup.h"
#include "src/train/run_state.h"
#include "stablemask/config/config.h"
#include "stablemask/data/loader.h"
#include "stablemask/dist/group.h"
#include "stablemask/train/step.h"

namespace stablemask {

/// Takes the training steps of a run: batches, learning rate, update, and the policy for steps that
/// are not finite.
class Stepper {
 public:
  struct Options {
    double lr = 0;  ///< peak
    ScheduleConfig schedule;
    int64_t steps = 0;  ///< of the whole run, for the schedule
    NonFinitePolicy non_finite = NonFinitePolicy::kStop;
    int64_t non_finite_limit = 0;
  };
  /// `loader` stands at the next step. `group`: the processes that take the steps together.
  Stepper(std::unique_ptr<Loader> loader, std::unique_ptr<StepProgram> program,
          std::unique_ptr<MaskWarmup> mask_warmup, const Options& options,
          std::shared_ptr<dist::Group> group);

  /// Reads this process's batches of the next step; does nothing if they have been read. Returns
  /// false when that is impossible: end_without_data throws the reason.
  bool read_batches();
  /// Takes step state.step + 1 on the batches that were read and enters it in `state`; returns the
  /// tokens trained on, 0 for a skipped step. On an exception `state` is unchanged. Throws
  /// NonFiniteError when the policy says stop, with unchanged weights; OutOfMemoryError.
  int64_t step(RunState& state);
  /// Called by all processes when some could not read their batches: those throw their DataError,
  /// the others PeerLostError.
  [[noreturn]] void end_without_data();

  /// Completes the model's weights on every process; all of them call it. Between a step and this
  /// call a process may have the new values of a part of them only.
  void gather_weights() { program_->gather_weights(); }
  /// StepProgram::use_averages.
  std::unique_ptr<AveragedWeights> use_averages() { return program_->use_averages(); }

  /// After an exception from step: whether the weights are still those of `state`.
  bool unchanged_after_failure() const { return program_->unchanged_after_failure(); }

 private:
  void skip_or_throw(RunState& state, const StepProgram::Result& result) const;

  std::unique_ptr<Loader> loader_;
  std::unique_ptr<StepProgram> program_;
  std::unique_ptr<MaskWarmup> mask_warmup_;
  Options options_;
  std::shared_ptr<dist::Group> group_;
  std::vector<Batch> batches_;     ///< of the next step; empty: not read yet
  std::exception_ptr data_error_;  ///< of reading them; null: none
};

}  // namespace stablemask
