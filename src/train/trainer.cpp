#include "stablemask/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <exception>
#include <filesystem>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "src/train/disk_need.h"
#include "src/train/loop.h"
#include "src/train/loop_parts.h"
#include "src/train/mask_warmup.h"
#include "src/train/resume.h"
#include "src/train/run_folder.h"
#include "src/train/run_inputs.h"
#include "src/train/same_run.h"
#include "src/train/snapshot.h"
#include "src/train/summary.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/data/loader.h"
#include "stablemask/dist/agreement.h"
#include "stablemask/infer/load.h"
#include "stablemask/infer/shared_algorithms.h"
#include "stablemask/nn/model.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/memory.h"
#include "stablemask/report/jsonl.h"
#include "stablemask/report/progress.h"
#include "stablemask/report/tensorboard.h"
#include "stablemask/report/work_progress.h"
#include "stablemask/train/torch_settings.h"

namespace stablemask {
namespace {

/// Shows the bytes done of so many in all, on the line of `progress`.
std::function<void(uint64_t done, uint64_t total)> shown_bytes(const Progress& progress,
                                                               const char* what) {
  const auto work = std::make_shared<WorkProgress>(progress.line(), what, "B");
  return [work](uint64_t done, uint64_t total) {
    work->show(static_cast<int64_t>(done), static_cast<int64_t>(total));
  };
}

/// The checkpoint whose weights a fresh finetuning run starts from. Process 0 chooses it, because
/// the source may be another run that goes on saving, and chooses again when that run has removed
/// it before every process had it open.
std::optional<Checkpoint> finetune_source(const Config& config, const RunInputs& inputs,
                                          dist::Group& group, const HashProgress& progress) {
  const std::string& named = config.train.init_from;
  if (named.empty()) return std::nullopt;
  std::optional<Checkpoint> source;
  do {
    const std::string chosen =
        dist::text_of_first(group, group.rank() == 0 ? resolve_checkpoint(named) : "");
    try {
      source = load_checkpoint(chosen, CheckpointParts::kWithoutOptimizer, progress);
    } catch (const CheckpointError&) {
      source.reset();
      std::error_code ignored;
      if (chosen == named || std::filesystem::exists(chosen + "/manifest.json", ignored)) throw;
    }
  } while (group.agree(source ? 0 : 1) != 0);
  require_same_tokenizer(*source, inputs.tokenizer);
  return source;
}

/// Throws CheckpointError in process 0, which writes, and PeerLostError in the others when the disk
/// lacks room for what a run that goes on from `step` will write.
void require_room(dist::Group& group, const Config& config, const Tokenizer& tokenizer,
                  int64_t step) {
  std::string problem;
  if (group.rank() == 0) problem = DiskNeed(config, tokenizer, step).problem();
  if (!problem.empty() && !config.train.stop_on_save_error) {
    log_warning(problem);  // as a save that fails
    problem.clear();
  }
  if (dist::any_failed(group, problem)) throw CheckpointError(problem);
}

}  // namespace

/// Sets a run up: inputs, run folder, resume point, model; then hands over to the loop.
struct Trainer::State {
  State(const Config& config_in, const RunOptions& options_in,
        std::shared_ptr<dist::Group> group_in);

  RunFacts run_facts() const;
  void check_inputs();
  void make_model(bool random_weights);
  void start_from(const std::optional<Checkpoint>& resumed, const std::optional<Checkpoint>& source,
                  const ResumePoint& point);
  Loop::Parts loop_parts(double seconds_before);

  Config config;
  const RunOptions options;
  std::shared_ptr<dist::Group> group;
  std::optional<SharedAlgorithms> algorithms;
  std::shared_ptr<Progress> progress;
  std::optional<RunInputs> inputs;
  std::shared_ptr<RunFolder> folder;
  at::Device device = at::kCPU;
  nn::Transformer model{nullptr};
  std::optional<BaseReference> base;  ///< of this run's adapters; none: it trains a whole model
  std::shared_ptr<FlatParameters> flat;
  std::shared_ptr<Optimizer> optimizer;
  std::shared_ptr<WeightAverage> average;  ///< null: none
  std::unique_ptr<Loop> loop;
};

Trainer::State::State(const Config& config_in, const RunOptions& options_in,
                      std::shared_ptr<dist::Group> group_in)
    : config(config_in), options(options_in), group(std::move(group_in)) {
  algorithms.emplace(group);

  // 1. Inputs, cheap checks first.
  resolve(config);
  check_inputs();

  // 2. The checkpoint to go on from, if any.
  const HashProgress shown = shown_bytes(*progress, "loading the checkpoint");
  const std::optional<Checkpoint> resumed = folder->find_resume(options, shown);
  std::optional<Checkpoint> source;
  ResumePoint point;
  if (resumed) {
    point = resume_point(*resumed, config, *inputs);
  } else {
    point.state.train_sha256 = inputs->train_sha256();
    if (group->rank() == 0) warn_of_vocabulary(config, inputs->tokenizer.vocab_size());
    source = finetune_source(config, *inputs, *group, shown);
  }

  require_room(*group, config, inputs->tokenizer, point.state.step);

  // 3. Model and optimizer.
  ops::with_memory_hint("choose a smaller model", [&] { make_model(!resumed && !source); });
  start_from(resumed, source, point);

  // 4. The loop.
  Loop::Parts parts = loop_parts(point.state.seconds);
  auto loader = std::make_unique<Loader>(inputs->sequences, loader_options(config, *group));
  loader->seek(point.state.step);
  parts.stepper = std::make_unique<Stepper>(
      std::move(loader),
      std::make_unique<StepProgram>(model, flat, optimizer, step_options(config), group, average),
      std::make_unique<MaskWarmup>(model, device, config.train.resolved_mask_warmup_steps(),
                                   point.state.step),
      stepper_options(config), group);
  if (resumed) {
    parts.saver->resumed_from(point.state, resumed->folder);
    if (group->rank() == 0) {
      const std::string removals = parts.saver->changed_removals(point.retention_before);
      if (!removals.empty()) log_warning(removals);
    }
  }
  if (model->fp8) point.state.fp8_clipped = model->fp8->clipped().item<int64_t>();
  loop = std::make_unique<Loop>(config.train, std::move(parts), point.state, resumed.has_value());
}

/// Opens tokenizer and shards, selects the device, compares all of it between the processes, and
/// takes the run folder.
void Trainer::State::check_inputs() {
  require_equal_shares(config.train, group->size());
  inputs = open_inputs(config);
  if (resolve_length(config, *inputs) && group->rank() == 0) {
    for (const std::string& warning : config_warnings(config)) log_warning(warning);
  }
  progress =
      std::make_shared<Progress>(stdout, config.train.steps, options.quiet || group->rank() != 0);
  config = with_document_mask(with_vocabulary(config, inputs->tokenizer), *inputs);
  nn::check_model(config.model);
  device = select_device(config.train.device, options.local_rank);
  const RunFacts facts = run_facts();
  require_same_run(*group, config, *inputs, facts.device, facts.bf16);
  folder = std::make_shared<RunFolder>(config.train.out, group);
  progress->table(run_summary(config, facts));
  // The processes of a machine read the same files.
  if (config.data.verify == VerifyKind::kPayload && options.local_rank == 0) {
    verify_payloads(*inputs, shown_bytes(*progress, "verifying shards"));
  }
}

RunFacts Trainer::State::run_facts() const {
  RunFacts facts;
  facts.train_tokens = inputs->train_tokens();
  facts.sets = inputs->sets(config.train);
  if (inputs->valid) facts.valid_tokens = inputs->valid->size();
  facts.device = ops::device_name(device);
  facts.bf16 = select_dtype(config.train.dtype, device) == at::kBFloat16;
  facts.bf16_instructions = ops::cpu_has_bf16();
  facts.threads = at::get_num_threads();
  facts.processes = group->size();
  return facts;
}

void Trainer::State::make_model(bool random_weights) {
  model = nn::Transformer(config.model);
  flat = std::make_shared<FlatParameters>(model, device, select_dtype(config.train.dtype, device),
                                          config.train.freeze_layers,
                                          share_of(*group, config.train.shard));
  init_weights(model, *flat, static_cast<uint64_t>(config.train.seed),
               random_weights ? nn::InitScope::kAll : nn::InitScope::kAdapters);
  use_precision(model, config.train);
  const ops::Kernels kernels = step_options(config).kernels;
  optimizer = options.make_optimizer
                  ? options.make_optimizer(config.optimizer, flat, kernels)
                  : make_optimizer(config.optimizer, flat, kernels, config.train.seed);
}

/// Fills weights and optimizer from a checkpoint, if there is one.
void Trainer::State::start_from(const std::optional<Checkpoint>& resumed,
                                const std::optional<Checkpoint>& source, const ResumePoint& point) {
  if (resumed) {
    base = restore_weights(*flat, *resumed);
    restore_optimizer(*flat, *optimizer, model->fp8.get(), *resumed);
    progress->note(format("resumed from %s: %s of %s steps done", resumed->folder.c_str(),
                          with_commas(static_cast<uint64_t>(point.state.step)).c_str(),
                          with_commas(static_cast<uint64_t>(config.train.steps)).c_str()));
    for (const std::string& change : point.changes) progress->note("config changed: " + change);
  } else if (source) {
    base = take_weights(*flat, *source, config.model);
    progress->note("weights from " + source->folder);
  }
  model->weights_are_set();
  average = make_average(config, flat, resumed, *progress);
}

/// All but the stepper.
Loop::Parts Trainer::State::loop_parts(double seconds_before) {
  const std::string config_json = dump_config(config);
  Loop::Parts parts;
  parts.progress = progress;
  parts.group = group;
  parts.on_step = options.on_step;
  parts.on_record = options.on_record;
  if (inputs->valid) {
    parts.validator = make_validator(config, *inputs, model, *progress, group);
    if (!config.train.sample_prompts.empty()) {
      parts.sampler = make_sampler(config, *inputs, model, *progress, group);
    }
  }
  std::vector<std::shared_ptr<MetricsSink>> sinks;
  if (group->rank() == 0) {
    sinks = {std::make_shared<JsonlMetrics>(folder->metrics()), progress};
    if (parts.sampler) sinks.push_back(std::make_shared<JsonlSamples>(folder->samples()));
    if (config.train.tensorboard) {
      sinks.push_back(std::make_shared<TensorboardMetrics>(folder->tensorboard(), config_json));
    }
    sinks.insert(sinks.end(), options.sinks.begin(), options.sinks.end());
  }
  parts.recorder = std::make_unique<Recorder>(
      std::move(sinks), recorder_options(config, device, seconds_before), group);
  Saver::Options saver = saver_options(config, *inputs, *folder);
  saver.base = base;
  parts.saver =
      std::make_unique<Saver>(std::move(saver), flat, optimizer, model->fp8, group, average);
  parts.keep_run = [run = folder, config_json] { run->keep(config_json); };
  parts.require_folder = [run = folder] { run->require_held(); };
  parts.inputs = std::make_unique<InputWatch>(*inputs, group);
  return parts;
}

namespace {

/// Runs `work`. When it throws, the other processes of `group` are told at once: what is destroyed
/// next may wait for the device, and the device for the others.
template <class Work>
auto telling_others(dist::Group& group, const Work& work) {
  try {
    return work();
  } catch (const PeerLostError&) {
    throw;  // they know
  } catch (const std::exception& error) {
    group.fail(error.what());
    throw;
  }
}

}  // namespace

Trainer::Trainer(const Config& config, const RunOptions& options) {
  configure_torch(config.train);
  const auto group = options.group ? options.group : dist::single_process_group();
  state_ = telling_others(*group, [&] { return std::make_unique<State>(config, options, group); });
}
Trainer::~Trainer() = default;
RunResult Trainer::run() {
  return telling_others(*state_->group, [&] { return state_->loop->run(); });
}
nn::Transformer Trainer::model() const { return state_->model; }

}  // namespace stablemask
