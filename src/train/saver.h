#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "src/train/run_state.h"
#include "src/train/snapshot.h"
#include "stablemask/dist/group.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/optim/flat_parameters.h"
#include "stablemask/optim/optimizer.h"

namespace stablemask {

/// Writes the checkpoints of a run and knows when the next one is due. Process 0 of the group
/// gathers the tensors from all and writes; the others wait and learn whether it succeeded.
class Saver {
 public:
  struct Options {
    std::string root;  ///< folder of the checkpoints
    Retention retention;
    int64_t every_steps = 0;   ///< 0: not by steps
    double every_seconds = 0;  ///< 0: not by time
    bool keep_best = false;    ///< save and keep the step of the lowest validation loss
    std::string config_json, tokenizer_model;
    std::map<std::string, std::string> tokenizer_companions;
    std::optional<BaseReference> base;  ///< of a run that trains adapters
  };
  /// `fp8`: null without fp8 products. With an `average` checkpoints hold it beside the weights.
  Saver(Options options, std::shared_ptr<FlatParameters> flat, std::shared_ptr<Optimizer> optimizer,
        std::shared_ptr<nn::Fp8Products> fp8, std::shared_ptr<dist::Group> group,
        std::shared_ptr<WeightAverage> average = nullptr);

  /// The run resumed in `state` from the checkpoint `folder`. A process that was killed between the
  /// save of its best checkpoint and the writing of BEST has left an older name there.
  void resumed_from(const RunState& state, const std::string& folder);
  /// Which checkpoints the next save removes and that of a run with the retention `before` would
  /// not: "train.keep_last 5 -> 2: the next save removes step-00000010, …"; "": none.
  std::string changed_removals(const Retention& before) const;
  /// Time counts from here on.
  void start_clock() { last_attempt_ = Clock::now(); }

  bool due(const RunState& state) const;
  /// Saves unless `state` is saved already; returns whether a checkpoint was written. A failure is
  /// a warning, or, if it `must_succeed`, CheckpointError in process 0 and PeerLostError in the
  /// others. Weights that are not finite are NonFiniteError in every process; a second attempt at
  /// them does nothing.
  bool save(const RunState& state, bool must_succeed);

  const std::string& folder() const { return folder_; }  ///< of the newest checkpoint; "": none

 private:
  using Clock = std::chrono::steady_clock;

  bool has_step(int64_t step) const { return saved_ && saved_->step == step; }
  /// What a checkpoint holds, in host memory of process 0.
  struct Tensors;
  Tensors gather() const;
  void write(const RunState& state, const Tensors& tensors);

  Options options_;
  std::shared_ptr<FlatParameters> flat_;
  std::shared_ptr<Optimizer> optimizer_;
  std::shared_ptr<nn::Fp8Products> fp8_;
  std::shared_ptr<dist::Group> group_;
  std::shared_ptr<WeightAverage> average_;  ///< null: none
  std::optional<RunState> saved_;           ///< of the newest checkpoint
  std::string folder_;
  int64_t refused_step_ = -1;  ///< whose weights are not finite
  Clock::time_point last_attempt_ = Clock::now();
};

}  // namespace stablemask
