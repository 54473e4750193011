#include "src/train/stepper.h"

#include <cmath>
#include <string>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/dist/agreement.h"
#include "stablemask/ops/memory.h"
#include "stablemask/train/schedule.h"

namespace stablemask {
namespace {

std::string join_ids(const std::vector<Batch>& batches) {
  std::vector<std::string> ids;
  for (const Batch& batch : batches) {
    for (const int64_t id : batch.sequence_ids) ids.push_back(std::to_string(id));
  }
  return join(ids, ",");
}

}  // namespace

Stepper::Stepper(std::unique_ptr<Loader> loader, std::unique_ptr<StepProgram> program,
                 std::unique_ptr<MaskWarmup> mask_warmup, const Options& options,
                 std::shared_ptr<dist::Group> group)
    : loader_(std::move(loader)),
      program_(std::move(program)),
      mask_warmup_(std::move(mask_warmup)),
      options_(options),
      group_(std::move(group)) {}

bool Stepper::read_batches() {
  if (!batches_.empty()) return true;
  // All micro-batches first, because the loss is divided by the step's valid targets.
  std::vector<Batch> batches;
  try {
    for (int64_t i = 0; i < loader_->micro_batches_per_step(); ++i) {
      batches.push_back(loader_->next());
    }
  } catch (const DataError&) {
    data_error_ = std::current_exception();
    return false;
  }
  batches_ = std::move(batches);
  return true;
}

void Stepper::end_without_data() {
  std::string problem;
  try {
    if (data_error_) std::rethrow_exception(data_error_);
  } catch (const DataError& error) {
    problem = error.what();
  }
  dist::any_failed(*group_, problem);  // throws in the others
  std::rethrow_exception(data_error_);
}

int64_t Stepper::step(RunState& state) {
  // 1. Forward, backward, clip and update. The optimizer's count of updates omits skipped steps.
  const double lr = learning_rate(options_.schedule, options_.lr, state.step + 1, options_.steps);
  mask_warmup_->begin(state.step + 1);
  const StepProgram::Result result = ops::with_memory_hint(
      "lower train.micro_batch (gradients add up to the same step) or train.context",
      [&] { return program_->run(batches_, lr, state.updates() + 1); });

  // 2. Account.
  if (result.updated) {
    state.tokens += result.valid_targets;
    state.loss_tokens += result.valid_targets;
    state.loss_sum += result.loss * static_cast<double>(result.valid_targets);
    state.skipped_in_a_row = 0;
  } else {
    skip_or_throw(state, result);
  }
  ++state.step;
  state.loss = result.loss;
  state.grad_norm = result.grad_norm;
  state.lr = lr;
  if (state.fp8_clipped) state.fp8_clipped = result.fp8_clipped;
  batches_.clear();
  return result.updated ? result.valid_targets : 0;
}

/// In all processes at the same step, because their loss and norm are equal.
void Stepper::skip_or_throw(RunState& state, const StepProgram::Result& result) const {
  // fabs: the sign of a NaN means nothing.
  const std::string what =
      format("step %lld: loss %g, gradient norm %g", static_cast<long long>(state.step + 1),
             std::fabs(result.loss), std::fabs(result.grad_norm));
  const std::string ids = "sequences " + join(group_->share(join_ids(batches_)), ",");
  const bool stops = options_.non_finite == NonFinitePolicy::kStop;
  if (stops || state.skipped_in_a_row >= options_.non_finite_limit) {
    throw NonFiniteError(what + " after " + std::to_string(state.skipped_in_a_row) +
                         " skipped in a row (" + ids +
                         "); no weight was touched; lower optimizer.lr" +
                         (stops ? " or set train.non_finite to skip" : ""));
  }
  ++state.skipped;
  ++state.skipped_in_a_row;
  if (group_->rank() != 0) return;
  log_warning(what + format("; skipped, %lld in a row of at most %lld (%s)",
                            static_cast<long long>(state.skipped_in_a_row),
                            static_cast<long long>(options_.non_finite_limit), ids.c_str()));
}

}  // namespace stablemask
