#include "src/train/saver.h"

#include <algorithm>
#include <utility>

#include "src/train/snapshot.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/dist/agreement.h"

namespace stablemask {

struct Saver::Tensors {
  HostTensors weights, optimizer;
  std::optional<HostTensors> averages = {};  ///< the weights to use; nullopt: `weights`
};

Saver::Saver(Options options, std::shared_ptr<FlatParameters> flat,
             std::shared_ptr<Optimizer> optimizer, std::shared_ptr<nn::Fp8Products> fp8,
             std::shared_ptr<dist::Group> group, std::shared_ptr<WeightAverage> average)
    : options_(std::move(options)),
      flat_(std::move(flat)),
      optimizer_(std::move(optimizer)),
      fp8_(std::move(fp8)),
      group_(std::move(group)),
      average_(std::move(average)) {}

void Saver::resumed_from(const RunState& state, const std::string& folder) {
  saved_ = state;
  folder_ = folder;
  options_.retention.best = options_.keep_best ? state.best_step : 0;
  if (options_.retention.best == 0 || group_->rank() != 0) return;
  try {
    name_best_checkpoint(options_.root, options_.retention.best);
  } catch (const CheckpointError& error) {
    log_warning(error.what());
  }
}

std::string Saver::changed_removals(const Retention& before) const {
  const Retention& now = options_.retention;
  const std::vector<std::string> removed = removed_by_next_save(options_.root, now);
  const std::vector<std::string> usual = removed_by_next_save(options_.root, before);
  // Both ascending.
  if (std::includes(usual.begin(), usual.end(), removed.begin(), removed.end())) return "";
  std::vector<std::string> changes;
  const auto compare = [&](const char* field, int64_t was, int64_t is) {
    if (was == is) return;
    changes.push_back(format("train.%s %lld -> %lld", field, static_cast<long long>(was),
                             static_cast<long long>(is)));
  };
  compare("keep_last", before.keep_last, now.keep_last);
  compare("keep_every", before.keep_every, now.keep_every);
  if (before.best > 0 && now.best == 0) changes.emplace_back("train.keep_best true -> false");
  constexpr size_t kMaxNamed = 10;
  std::string names =
      join({removed.begin(), removed.begin() + std::min(removed.size(), kMaxNamed)}, ", ");
  if (removed.size() > kMaxNamed) names += format(" and %zu more", removed.size() - kMaxNamed);
  return join(changes, ", ") + ": the next save removes " + names + " from " + options_.root +
         "; to keep them, stop the run and set the field" + (changes.size() > 1 ? "s" : "") +
         " as before";
}

bool Saver::due(const RunState& state) const {
  if (state.step == 0 || has_step(state.step)) return false;
  if (options_.every_steps > 0 && state.step % options_.every_steps == 0) return true;
  if (options_.keep_best && state.best_step == state.step) return true;
  const double seconds = std::chrono::duration<double>(Clock::now() - last_attempt_).count();
  return options_.every_seconds > 0 && seconds >= options_.every_seconds;
}

bool Saver::save(const RunState& state, bool must_succeed) {
  const bool replaces = has_step(state.step);
  if (replaces && saved_->validation_pending == state.validation_pending &&
      saved_->line_pending == state.line_pending) {
    return false;
  }
  if (state.step == refused_step_) return false;
  // Every process sends its part.
  const Tensors tensors = gather();
  refused_step_ = state.step;
  require_finite(tensors.weights, state.step, *group_);
  if (tensors.averages) require_finite(*tensors.averages, state.step, *group_);
  refused_step_ = -1;
  std::string problem;
  if (group_->rank() == 0) {
    try {
      write(state, tensors);
    } catch (const CheckpointError& error) {
      problem = error.what();
    }
  }
  last_attempt_ = Clock::now();
  if (group_->agree(problem.empty() ? 0 : 1) == 0) {
    saved_ = state;
    return true;
  }
  // A checkpoint with these weights exists already; some file systems cannot replace it in one
  // step.
  if (must_succeed && !replaces) {
    dist::any_failed(*group_, problem);  // throws in the others
    throw CheckpointError(problem);
  }
  if (group_->rank() == 0) log_warning(problem + "; training goes on without this checkpoint");
  return false;
}

Saver::Tensors Saver::gather() const {
  const std::map<std::string, at::Tensor> master = flat_->master(*group_);
  Tensors tensors{HostTensors(master),
                  HostTensors(optimizer_state(*flat_, *optimizer_, fp8_.get(), *group_))};
  if (average_) tensors.averages.emplace(averaged_weights(master, *average_, *group_));
  return tensors;
}

void Saver::write(const RunState& state, const Tensors& tensors) {
  CheckpointContent content;
  content.step = state.step;
  content.model = tensors.weights.views();
  content.optimizer = tensors.optimizer.views();
  if (tensors.averages) {
    content.trained = std::move(content.model);
    content.model = tensors.averages->views();
    content.averaged = true;
  }
  content.state_json = to_json(state);
  content.config_json = options_.config_json;
  content.tokenizer_model = options_.tokenizer_model;
  content.tokenizer_companions = options_.tokenizer_companions;
  content.base = options_.base;
  options_.retention.best = options_.keep_best ? state.best_step : 0;
  folder_ = save_checkpoint(options_.root, content, options_.retention);
}

}  // namespace stablemask
