#include "src/train/saver.h"

#include <utility>

#include "src/train/snapshot.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask {

Saver::Saver(Options options, std::shared_ptr<FlatParameters> flat,
             std::shared_ptr<Optimizer> optimizer, std::shared_ptr<dist::Group> group)
    : options_(std::move(options)),
      flat_(std::move(flat)),
      optimizer_(std::move(optimizer)),
      group_(std::move(group)) {}

void Saver::resumed_from(const RunState& state, const std::string& folder) {
  saved_ = state;
  folder_ = folder;
}

bool Saver::due(const RunState& state) const {
  if (state.step == 0 || has_step(state.step)) return false;
  if (options_.every_steps > 0 && state.step % options_.every_steps == 0) return true;
  const double seconds = std::chrono::duration<double>(Clock::now() - last_attempt_).count();
  return options_.every_seconds > 0 && seconds >= options_.every_seconds;
}

bool Saver::save(const RunState& state, bool must_succeed) {
  const bool replaces = has_step(state.step);
  if (replaces && saved_->validation_pending == state.validation_pending &&
      saved_->line_pending == state.line_pending) {
    return false;
  }
  std::string problem;
  if (group_->rank() == 0) {
    try {
      write(state);
    } catch (const CheckpointError& error) {
      problem = error.what();
    }
  }
  last_attempt_ = Clock::now();
  if (group_->agree(problem.empty() ? 0 : 1) == 0) {
    saved_ = state;
    return true;
  }
  if (problem.empty()) problem = "process 0 could not save a checkpoint";
  // A checkpoint with these weights exists already; some file systems cannot replace it in one
  // step.
  if (must_succeed && !replaces) throw CheckpointError(problem);
  log_warning(problem + "; training goes on without this checkpoint");
  return false;
}

void Saver::write(const RunState& state) {
  const HostTensors weights(flat_->master()), optimizer(optimizer_->named_state());
  CheckpointContent content;
  content.step = state.step;
  content.model = weights.views();
  content.optimizer = optimizer.views();
  content.state_json = to_json(state);
  content.config_json = options_.config_json;
  content.tokenizer_model = options_.tokenizer_model;
  folder_ = save_checkpoint(options_.root, content, options_.retention);
}

}  // namespace stablemask
