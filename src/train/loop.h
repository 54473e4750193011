#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "src/train/input_watch.h"
#include "src/train/recorder.h"
#include "src/train/run_state.h"
#include "src/train/sampler.h"
#include "src/train/saver.h"
#include "src/train/stepper.h"
#include "src/train/validator.h"
#include "stablemask/dist/group.h"
#include "stablemask/report/progress.h"
#include "stablemask/train/trainer.h"

namespace stablemask {

/// Which work a step is due after its update.
struct DueWork {
  bool validation = false;
  bool line = false;  ///< of the metrics
};
/// A pure function of the schedule. The last step is validated and recorded always.
DueWork due_work(const TrainConfig& train, bool has_validation, int64_t step);

/// The training loop: steps with validation, metrics and checkpoints in between, until the run is
/// done or stopped. Every decision that the processes of the group must take alike is agreed: all
/// of them do the same collective operations in the same order.
class Loop {
 public:
  struct Parts {
    std::unique_ptr<Stepper> stepper;
    std::unique_ptr<Validator> validator;  ///< null: no validation
    std::unique_ptr<Sampler> sampler;      ///< after each validation; null: no samples
    std::unique_ptr<Recorder> recorder;
    std::unique_ptr<Saver> saver;
    std::shared_ptr<Progress> progress;
    std::shared_ptr<dist::Group> group;
    /// Called once in every process, after the first step or before it in a resumed run: the run is
    /// worth keeping.
    std::function<void()> keep_run;
    /// RunFolder::require_held, before files are written.
    std::function<void()> require_folder;
    std::unique_ptr<InputWatch> inputs;
    MetricsCallback on_step, on_record;
  };
  /// `state` is where the run starts or goes on; `resumed`: from a checkpoint.
  Loop(const TrainConfig& train, Parts parts, const RunState& state, bool resumed);

  RunResult run();

 private:
  void run_steps();
  void take_step();
  void validate();
  void record(const std::vector<Sample>& samples = {});
  void save(bool must_succeed);
  void save_state(bool must_succeed);
  void save_after_failure();
  void begin_records();
  int64_t decide();
  RunResult result() const;

  TrainConfig train_;
  Parts parts_;
  RunState state_;
  bool began_records_ = false;
  bool callback_stops_ = false;
  int64_t decision_ = 0;  ///< the last one agreed
};

}  // namespace stablemask
