#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "src/train/run_state.h"
#include "stablemask/config/config.h"
#include "stablemask/data/loader.h"
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
  /// `loader` stands at the next step.
  Stepper(std::unique_ptr<Loader> loader, std::unique_ptr<StepProgram> program,
          const Options& options);

  struct Taken {
    int64_t tokens = 0;  ///< trained on; 0: the step was skipped
    double seconds = 0;
  };
  /// Takes step state.step + 1 and enters it in `state`. On an exception `state` is unchanged.
  /// Throws NonFiniteError when the policy says stop, with unchanged weights; DataError,
  /// OutOfMemoryError.
  Taken step(RunState& state);

  /// Completes the model's weights (StepProgram::gather_weights).
  void gather_weights() { program_->gather_weights(); }

  /// After an exception from step: whether the weights are still those of `state`.
  bool unchanged_after_failure() const { return program_->unchanged_after_failure(); }

 private:
  void skip_or_throw(RunState& state, const StepProgram::Result& result,
                     const std::vector<Batch>& batches) const;

  std::unique_ptr<Loader> loader_;
  std::unique_ptr<StepProgram> program_;
  Options options_;
};

}  // namespace stablemask
