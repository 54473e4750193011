#include "src/train/loop.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/dist/agreement.h"

namespace stablemask {
namespace {

/// Decisions that the processes agree on before every step; the largest one counts.
constexpr int64_t kContinue = 0, kSave = 1;
constexpr int64_t kStop = 2;          ///< this and all larger ones stop: here by time or a callback
constexpr int64_t kStopBySignal = 3;  ///< plus the signal's number
constexpr int64_t kNoData = 1000;     ///< a process cannot read its batches

void set_pending(RunState& state, const DueWork& due) {
  state.validation_pending = due.validation;
  state.line_pending = due.line;
}

/// Clears the stop signal that ended a run.
RunResult answered(RunResult result) {
  if (result.signal != 0 && stop_signal() == result.signal) request_stop(0);
  return result;
}

void record_samples(const std::vector<Sample>& samples, Recorder& recorder, Progress& progress) {
  constexpr size_t kColumns = 79;
  for (const Sample& sample : samples) {
    recorder.record(sample);
    for (const std::string& text : sample_lines(sample, kColumns)) progress.note(text);
  }
}

/// Validates and draws samples with the weights that a checkpoint of `state` has for use. Returns
/// the stop signal that came in between; 0: none.
int try_model(Loop::Parts& parts, RunState& state, bool last, std::vector<Sample>& samples) {
  const std::unique_ptr<AveragedWeights> averages = parts.stepper->use_averages();
  const int signal = parts.validator->validate(state, last);
  if (signal != 0 || !parts.sampler) return signal;
  return parts.sampler->sample(state.step, samples);
}

/// Under a part of the mask the loss is another model's.
void compare(RunState& state, const Validator& validator, const TrainConfig& train) {
  if (state.step >= train.resolved_mask_warmup_steps()) state.compare(validator.compared_loss());
}

/// What follows from the state and the signal that ended the run (0: none).
RunResult result_of(const RunState& state, const TrainConfig& train, int signal) {
  const bool recorded = !state.line_pending;
  RunResult result;
  result.step = state.step;
  result.finished = recorded && state.step >= train.steps;
  result.out_of_patience =
      recorded && !result.finished && signal == 0 && state.out_of_patience(train.patience);
  result.last_loss = state.loss;
  result.valid_loss = state.valid_loss;
  result.best_step = state.best_step;
  result.best_loss = state.best_loss;
  result.skipped = state.skipped;
  result.signal = signal;
  return result;
}

}  // namespace

DueWork due_work(const TrainConfig& train, bool has_validation, int64_t step) {
  const bool last = step == train.steps;
  DueWork due;
  due.validation =
      has_validation && (last || (train.eval_every > 0 && step % train.eval_every == 0));
  due.line = last || due.validation || step % train.log_every == 0;
  return due;
}

Loop::Loop(const TrainConfig& train, Parts parts, const RunState& state, bool resumed)
    : train_(train), parts_(std::move(parts)), state_(state) {
  if (resumed) begin_records();
}

RunResult Loop::run() {
  parts_.recorder->start_clock();
  parts_.saver->start_clock();
  try {
    run_steps();
  } catch (const CheckpointError&) {
    throw;  // another attempt to save would fail like the one that threw
  } catch (const InputsChanged&) {
    throw;  // save() has decided what is worth keeping
  } catch (const NonFiniteError&) {
    save_after_failure();  // all processes are here, because their loss and norm are equal
    throw;
  } catch (...) {
    if (parts_.group->size() == 1) save_after_failure();  // saving needs all processes
    throw;
  }
  save(/*must_succeed=*/true);
  return answered(result());
}

/// Reading order: this function, then take_step, then what they call.
void Loop::run_steps() {
  while (true) {
    // 1. Work that step `state_.step` is still due, also if an earlier process took the step.
    if (state_.validation_pending) validate();
    if (state_.validation_pending) return;  // stopped by a signal; a resumed run validates again
    if (state_.line_pending) record();

    // 2. The next step's data and decisions, agreed between the processes.
    parts_.recorder->start_step();
    decision_ = parts_.group->agree(decide());
    if (decision_ == kNoData) {
      if (parts_.group->size() > 1) save_after_failure();  // run() does it for a process alone
      parts_.stepper->end_without_data();
    }
    if (decision_ >= kStop || state_.step >= train_.steps) return;
    if (decision_ == kSave) save(train_.stop_on_save_error);

    // 3. The next step.
    take_step();
  }
}

void Loop::take_step() {
  try {
    parts_.recorder->end_step(parts_.stepper->step(state_));
  } catch (const NonFiniteError&) {
    begin_records();  // worth keeping for its state before the first step, too
    throw;
  }
  set_pending(state_, due_work(train_, parts_.validator != nullptr, state_.step));
  begin_records();
  const StepMetrics metrics = parts_.recorder->metrics(state_);
  if (parts_.on_step && !parts_.on_step(metrics)) callback_stops_ = true;
  parts_.progress->tick(metrics);
}

/// Validates step `state_.step` and draws its samples, or leaves the validation pending and sets
/// decision_ if a signal comes in between.
void Loop::validate() {
  if (!parts_.validator) {
    state_.validation_pending = false;
    return;
  }
  std::vector<Sample> samples;
  const int signal = try_model(parts_, state_, state_.step >= train_.steps, samples);
  if (signal == 0) {
    compare(state_, *parts_.validator, train_);
    return record(samples);
  }
  decision_ = kStopBySignal + signal;
}

void Loop::record(const std::vector<Sample>& samples) {
  const StepMetrics line = parts_.recorder->record(state_);
  record_samples(samples, *parts_.recorder, *parts_.progress);
  state_.start_line();
  if (parts_.on_record && !parts_.on_record(line)) callback_stops_ = true;
}

/// Before a checkpoint takes the place of an older one: that the steps since were trained on the
/// right tokens.
void Loop::save(bool must_succeed) {
  parts_.inputs->require_train_tokens();
  save_state(must_succeed);
  parts_.inputs->require_valid_tokens();
}

void Loop::save_state(bool must_succeed) {
  begin_records();
  parts_.require_folder();
  parts_.stepper->gather_weights();
  state_.seconds = parts_.recorder->seconds();
  parts_.recorder->sync();
  parts_.progress->status(format("saving step %lld", static_cast<long long>(state_.step)));
  if (parts_.saver->save(state_, must_succeed)) {
    parts_.progress->note("saved " + parts_.saver->folder());
  }
  parts_.recorder->start_step();  // the time does not count
}

/// Saves the last complete step, for which weights and `state_` must agree. The exception that
/// ended the run is more important than any from here.
void Loop::save_after_failure() {
  if (!began_records_) return;  // no step worked: the folder stays as it was
  const auto step = static_cast<long long>(state_.step);
  if (!parts_.stepper->unchanged_after_failure()) {
    return log_warning(
        format("the update of step %lld was interrupted; its weights are not saved", step + 1));
  }
  try {
    save_state(/*must_succeed=*/false);
  } catch (const std::exception& error) {
    log_warning(format("step %lld could not be saved: %s", step, error.what()));
  }
}

/// Makes the run folder and the sinks this run's. A fresh run does so after its first step, which
/// may not fit into memory, so that it leaves no files if it fails.
void Loop::begin_records() {
  if (began_records_) return;
  parts_.require_folder();
  // A line that is pending may be there already, from a process that got further than its last
  // checkpoint.
  parts_.recorder->cut_after(state_.line_pending && state_.step > 0 ? state_.step - 1
                                                                    : state_.step);
  parts_.keep_run();
  began_records_ = true;
}

/// Reads this process's batches of the next step, if there may be one.
int64_t Loop::decide() {
  if (const int signal = stop_signal(); signal != 0) return kStopBySignal + signal;
  const double limit = train_.time_limit_s;
  if (callback_stops_ || state_.out_of_patience(train_.patience) ||
      (limit > 0 && parts_.recorder->seconds_here() >= limit))
    return kStop;
  if (state_.step < train_.steps && !parts_.stepper->read_batches()) return kNoData;
  return parts_.saver->due(state_) ? kSave : kContinue;
}

RunResult Loop::result() const {
  const auto signal = static_cast<int>(std::max<int64_t>(decision_ - kStopBySignal, 0));
  RunResult result = result_of(state_, train_, signal);
  result.tokens_per_second = parts_.recorder->tokens_per_second();
  result.checkpoint = dist::text_of_first(*parts_.group, parts_.saver->folder());
  return result;
}

}  // namespace stablemask
