#include "stablemask/train/trainer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "src/train/run_folder.h"
#include "src/train/run_inputs.h"
#include "src/train/run_state.h"
#include "src/train/snapshot.h"
#include "src/train/torch_settings.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/data/loader.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/load.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/nn/model.h"
#include "stablemask/ops/memory.h"
#include "stablemask/report/metrics.h"
#include "stablemask/report/progress.h"
#include "stablemask/train/schedule.h"
#include "stablemask/train/state.h"
#include "stablemask/train/step.h"

namespace stablemask {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A time span's steps, for tokens per second.
struct Rate {
  int64_t tokens = 0;
  double seconds = 0;
  double per_second() const { return seconds > 0 ? tokens / seconds : 0; }
};

LoaderOptions loader_options(const Config& config) {
  LoaderOptions options;
  options.context = config.train.context;
  options.batch = config.train.batch;
  options.micro_batch = config.train.micro_batch ? config.train.micro_batch : config.train.batch;
  options.seed = static_cast<uint64_t>(config.train.seed);
  options.document_mask = config.data.document_mask;
  options.prefetch = config.data.prefetch;
  return options;
}

void require_same_tokenizer(const Checkpoint& checkpoint, const Tokenizer& tokenizer) {
  const std::string& model = checkpoint.tokenizer_model;
  if (sha256_hex(model.data(), model.size()) != tokenizer.sha256()) {
    throw DataError(checkpoint.folder + ": was trained with another tokenizer than data.tokenizer");
  }
}

/// Refuses to go on from a checkpoint with another model, recipe, tokenizer or data.
void require_same_run(const Checkpoint& checkpoint, const Config& now, const RunState& state,
                      const RunInputs& inputs) {
  const Config saved = parse_config(checkpoint.config_json, checkpoint.folder + "/config.json");
  const std::vector<std::string> changed = frozen_differences(saved, now);
  if (!changed.empty()) {
    throw ConfigError(checkpoint.folder + ": cannot be resumed with another config: " +
                      join(changed) + "; restore these, or choose another train.out");
  }
  require_same_tokenizer(checkpoint, inputs.tokenizer);
  if (state.train_sha256 != inputs.train_sha256()) {
    throw DataError(checkpoint.folder +
                    ": was trained on other shards than data.train; the data order "
                    "could not continue");
  }
}

std::string join_ids(const std::vector<Batch>& batches) {
  std::vector<std::string> ids;
  for (const Batch& batch : batches) {
    for (const int64_t id : batch.sequence_ids) ids.push_back(std::to_string(id));
  }
  return join(ids, ",");
}

nn::Transformer initialised_model(const Config& config, bool random_weights) {
  return ops::with_memory_hint("choose a smaller model", [&] {
    nn::Transformer model(config.model);
    if (random_weights) model->init_weights(static_cast<uint64_t>(config.train.seed));
    return model;
  });
}

}  // namespace

/// Reading order: step, run, then what they call.
struct Trainer::State {
  State(const Config& config_in, const RunOptions& options_in);
  RunResult run();

 private:
  enum class Outcome { kUpdated, kSkipped, kNonFinite };

  Outcome step();
  Outcome refuse_update(int64_t step, double loss, double norm, const std::vector<Batch>& batches);
  bool validate();
  void record();
  void begin_records(int64_t recorded);
  void save(bool must_succeed);
  void restore(const Checkpoint& checkpoint);
  bool should_stop() const;
  StepMetrics metrics() const;
  RunResult result() const;

  RunOptions options_;
  RunInputs inputs_;
  Config config_;
  at::Device device_;
  RunFolder folder_;
  std::optional<Checkpoint> resumed_;  ///< until its tensors are copied, as the next one
  RunState state_;
  std::optional<Checkpoint> source_;  ///< train.init_from of a run that starts
  nn::Transformer model_;
  FlatState flat_;
  StepProgram program_;
  Loader loader_;
  Progress progress_;
  std::optional<MetricsLog> log_;  ///< see begin_records

  Clock::time_point start_ = Clock::now();
  double seconds_before_ = 0;  ///< of the processes that trained this run earlier
  Rate line_rate_, whole_rate_;
  double lr_ = 0;
  int64_t saved_step_ = -1;
  std::string saved_folder_;
  std::string refusal_;  ///< the message of an update that was refused
};

namespace {

RunInputs checked_inputs(const Config& config) {
  RunInputs inputs = open_inputs(config.data);
  verify_payloads(inputs);
  return inputs;
}

/// The checkpoint whose weights a finetuning run starts from.
std::optional<Checkpoint> finetune_source(const Config& config, const RunInputs& inputs) {
  if (config.train.init_from.empty()) return std::nullopt;
  Checkpoint source = load_checkpoint(resolve_checkpoint(config.train.init_from),
                                      CheckpointParts::kWithoutOptimizer);
  require_same_tokenizer(source, inputs.tokenizer);
  return source;
}

RunState resumed_state(const std::optional<Checkpoint>& checkpoint, const Config& config,
                       const RunInputs& inputs) {
  RunState state;
  state.train_sha256 = inputs.train_sha256();
  if (!checkpoint) return state;
  state = run_state_from_json(checkpoint->state_json, checkpoint->folder + "/state.json");
  require_same_run(*checkpoint, config, state, inputs);
  return state;
}

}  // namespace

Trainer::State::State(const Config& config_in, const RunOptions& options_in)
    : options_(options_in),
      inputs_(checked_inputs(config_in)),
      config_(with_vocabulary(config_in, inputs_.tokenizer)),
      device_(select_device(config_.train.device)),
      folder_(config_.train.out),
      resumed_(folder_.find_resume(options_)),
      state_(resumed_state(resumed_, config_, inputs_)),
      source_(resumed_ ? std::nullopt : finetune_source(config_, inputs_)),
      model_(initialised_model(config_, !resumed_ && !source_)),
      flat_(ops::with_memory_hint("choose a smaller model",
                                  [&] {
                                    return FlatState(model_, device_,
                                                     select_dtype(config_.train.dtype, device_),
                                                     config_.train.freeze_layers);
                                  })),
      program_(model_, flat_, config_),
      loader_(inputs_.train, loader_options(config_)),
      progress_(stdout, config_.train.steps, options_.quiet) {
  if (resumed_) {
    restore(*resumed_);
  } else if (source_) {
    restore_weights(flat_, *source_);
    progress_.note("weights from " + source_->folder);
  }
  model_->weights_are_set();
  resumed_.reset();
  source_.reset();
  loader_.seek(state_.step);
  // A line the checkpoint still owes may be there already, from a process that got further.
  if (saved_step_ >= 0) begin_records(state_.line_pending ? state_.step - 1 : state_.step);
}

void Trainer::State::restore(const Checkpoint& checkpoint) {
  restore_training(flat_, checkpoint);
  seconds_before_ = state_.seconds;
  saved_step_ = state_.step;
  saved_folder_ = checkpoint.folder;
  lr_ = state_.step == 0 ? 0
                         : learning_rate(config_.schedule, config_.optimizer.lr, state_.step,
                                         config_.train.steps);
  progress_.note("resumed from " + checkpoint.folder);
}

/// Makes the run folder this run's, with metrics up to step `recorded`. A fresh run waits for its
/// first step, which may not fit into memory, so that it leaves no trace if it fails.
void Trainer::State::begin_records(int64_t recorded) {
  if (log_) return;
  log_.emplace(folder_.metrics(), recorded);
  write_file_atomically(folder_.config(), dump_config(config_));
  folder_.keep();
}

/// One optimizer step: the gradients of train.batch sequences, one update.
Trainer::State::Outcome Trainer::State::step() {
  const auto start = Clock::now();
  const int64_t number = state_.step + 1;

  // 1. Data: the whole step's micro-batches, so that the count of valid targets is known before the
  //    first backward.
  std::vector<Batch> batches;
  int64_t valid_targets = 0;
  for (int64_t i = 0; i < loader_.micro_batches_per_step(); ++i) {
    batches.push_back(loader_.next());
    valid_targets += batches.back().valid_targets;
  }

  // 2. Forward, backward, clip and update on the device, which leaves the weights alone when loss
  //    or norm is not finite. AdamW's own count leaves skipped steps out.
  lr_ = learning_rate(config_.schedule, config_.optimizer.lr, number, config_.train.steps);
  const StepProgram::Result result = program_.run(batches, lr_, state_.updates() + 1);
  if (!result.updated) return refuse_update(number, result.loss, result.grad_norm, batches);

  // 3. Account.
  state_.step = number;
  state_.tokens += valid_targets;
  state_.skipped_in_a_row = 0;
  state_.loss = result.loss;
  state_.grad_norm = result.grad_norm;
  const double seconds = seconds_since(start);
  for (Rate* rate : {&line_rate_, &whole_rate_}) {
    rate->tokens += valid_targets;
    rate->seconds += seconds;
  }
  return Outcome::kUpdated;
}

/// The policy for a step whose loss or gradient norm is not finite; the weights are those before
/// it.
Trainer::State::Outcome Trainer::State::refuse_update(int64_t number, double loss, double norm,
                                                      const std::vector<Batch>& batches) {
  // Without the meaningless sign of a NaN.
  const std::string what = format("step %lld: loss %g, gradient norm %g",
                                  static_cast<long long>(number), std::fabs(loss), std::fabs(norm));
  const std::string ids = "sequences " + join_ids(batches);
  const TrainConfig& train = config_.train;
  const bool may_skip = train.non_finite == NonFinitePolicy::kSkip &&
                        state_.skipped_in_a_row < train.non_finite_limit;
  if (!may_skip) {
    refusal_ =
        what + " after " + std::to_string(state_.skipped_in_a_row) + " skipped in a row (" + ids +
        "); no weight was touched; lower optimizer.lr" +
        (train.non_finite == NonFinitePolicy::kStop ? " or set train.non_finite to skip" : "");
    return Outcome::kNonFinite;
  }
  state_.step = number;
  ++state_.skipped;
  ++state_.skipped_in_a_row;
  state_.loss = loss;
  state_.grad_norm = norm;
  log_warning(what + format("; skipped, %lld in a row of at most %lld (%s)",
                            static_cast<long long>(state_.skipped_in_a_row),
                            static_cast<long long>(train.non_finite_limit), ids.c_str()));
  return Outcome::kSkipped;
}

RunResult Trainer::State::run() {
  const TrainConfig& train = config_.train;
  start_ = Clock::now();
  while (true) {
    // What step `state_.step` still owes, also when an earlier process stopped in between.
    if (state_.validation_pending && !validate()) break;
    if (state_.line_pending) record();
    const bool done = state_.step >= train.steps;
    if (!done && train.save_every > 0 && state_.step > 0 && state_.step % train.save_every == 0) {
      save(/*must_succeed=*/train.stop_on_save_error);
    }
    if (done || should_stop()) break;

    const Outcome outcome = ops::with_memory_hint(
        "lower train.micro_batch (gradients add up to the same step) or train.context",
        [&] { return step(); });
    begin_records(0);
    if (outcome == Outcome::kNonFinite) {
      save(/*must_succeed=*/false);
      throw NonFiniteError(refusal_);
    }
    if (options_.on_step) options_.on_step(state_.step);

    const bool last = state_.step == train.steps;
    state_.validation_pending =
        inputs_.valid && (last || (train.eval_every > 0 && state_.step % train.eval_every == 0));
    state_.line_pending = last || state_.validation_pending || state_.step % train.log_every == 0;
    progress_.tick(metrics());
  }
  save(/*must_succeed=*/true);
  return result();
}

/// False when a stop signal came in between; the validation then stays pending.
bool Trainer::State::validate() {
  EvalOptions options;
  options.window = config_.eval.window ? config_.eval.window : config_.train.context;
  options.stride = config_.eval.stride;
  options.batch = config_.eval.batch;
  options.eos_id = inputs_.tokenizer.eos_id();
  options.document_mask = config_.data.document_mask;
  const Perplexity perplexity = evaluate(model_, *inputs_.valid, options);
  model_->train();
  if (!perplexity.complete) return false;
  state_.valid_loss = perplexity.nll / static_cast<double>(perplexity.tokens);
  state_.valid_word_ppl = perplexity.word();
  return true;
}

/// Writes the line of metrics.jsonl.
void Trainer::State::record() {
  StepMetrics line = metrics();
  if (state_.validation_pending) {
    line.valid_loss = state_.valid_loss;
    line.valid_word_ppl = state_.valid_word_ppl;
  }
  log_->append(line);
  progress_.report(line);
  line_rate_ = {};
  state_.validation_pending = state_.line_pending = false;
}

void Trainer::State::save(bool must_succeed) {
  if (saved_step_ == state_.step) return;
  begin_records(0);
  state_.seconds = seconds_before_ + seconds_since(start_);
  log_->sync();
  const HostTensors weights(flat_.master()), moments(flat_.named_optimizer());
  CheckpointContent content;
  content.step = state_.step;
  content.model = weights.views();
  content.optimizer = moments.views();
  content.state_json = to_json(state_);
  content.config_json = dump_config(config_);
  content.tokenizer_model = inputs_.tokenizer.bytes();
  try {
    saved_folder_ = save_checkpoint(folder_.checkpoints(), content,
                                    {config_.train.keep_last, config_.train.keep_every});
  } catch (const CheckpointError& error) {
    if (must_succeed) throw;
    log_warning(std::string(error.what()) + "; training goes on without this checkpoint");
    return;
  }
  saved_step_ = state_.step;
  progress_.note("saved " + saved_folder_);
}

bool Trainer::State::should_stop() const {
  const double limit = config_.train.time_limit_s;
  return stop_signal() != 0 || (limit > 0 && seconds_since(start_) >= limit);
}

StepMetrics Trainer::State::metrics() const {
  StepMetrics line;
  line.step = state_.step;
  line.tokens = state_.tokens;
  line.loss = state_.loss;
  line.grad_norm = state_.grad_norm;
  line.lr = lr_;
  line.skipped = state_.skipped;
  line.tokens_per_second =
      line_rate_.tokens > 0 ? line_rate_.per_second() : whole_rate_.per_second();
  if (device_.is_cuda()) {
    line.mfu = line.tokens_per_second * nn::flops_per_token(config_.model, config_.train.context) /
               kPeakFlops;
  }
  line.peak_memory_bytes = ops::peak_memory_bytes(device_);
  line.seconds = seconds_before_ + seconds_since(start_);
  return line;
}

RunResult Trainer::State::result() const {
  RunResult result;
  result.step = state_.step;
  result.finished = state_.step >= config_.train.steps && !state_.line_pending;
  result.last_loss = state_.loss;
  result.valid_loss = state_.valid_loss;
  result.tokens_per_second = whole_rate_.per_second();
  result.skipped = state_.skipped;
  result.signal = stop_signal();
  result.checkpoint = saved_folder_;
  return result;
}

Trainer::Trainer(const Config& config, const RunOptions& options) {
  configure_torch(config.train);
  state_ = std::make_unique<State>(config, options);
}
Trainer::~Trainer() = default;
RunResult Trainer::run() { return state_->run(); }

}  // namespace stablemask
