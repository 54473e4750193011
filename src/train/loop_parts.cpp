#include "src/train/loop_parts.h"

#include <utility>

#include "src/train/snapshot.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/memory.h"
#include "stablemask/report/peak_flops.h"
#include "stablemask/report/work_progress.h"

namespace stablemask {

LoaderOptions loader_options(const Config& config, const dist::Group& group) {
  LoaderOptions options;
  options.batch = config.train.batch;
  options.micro_batch = config.train.resolved_micro_batch(group.size());
  options.seed = static_cast<uint64_t>(config.train.seed);
  options.prefetch = config.data.prefetch;
  options.rank = group.rank();
  options.size = group.size();
  return options;
}

Stepper::Options stepper_options(const Config& config) {
  return {config.optimizer.lr, config.schedule, config.train.steps, config.train.non_finite,
          config.train.non_finite_limit};
}

Recorder::Options recorder_options(const Config& config, at::Device device, double seconds_before) {
  Recorder::Options options;
  options.device = device;
  options.flops_per_token = nn::flops_per_token(config.model, config.train.context);
  options.peak_flops = peak_flops(ops::device_name(device));
  options.seconds_before = seconds_before;
  return options;
}

Saver::Options saver_options(const Config& config, const RunInputs& inputs,
                             const RunFolder& folder) {
  Saver::Options saver;
  saver.root = folder.checkpoints();
  saver.retention = {config.train.keep_last, config.train.keep_every};
  saver.keep_best = config.train.keep_best;
  saver.every_steps = config.train.save_every;
  saver.every_seconds = 60 * config.train.save_minutes;
  saver.config_json = dump_config(config);
  saver.tokenizer_model = inputs.tokenizer.bytes();
  saver.tokenizer_companions = inputs.tokenizer.companions();
  return saver;
}

std::shared_ptr<WeightAverage> make_average(const Config& config,
                                            const std::shared_ptr<FlatParameters>& flat,
                                            const std::optional<Checkpoint>& resumed,
                                            Progress& progress) {
  const double decay = config.train.ema_decay;
  if (decay == 0) {
    if (resumed && resumed->averaged) {
      progress.note("train.ema_decay is 0: the average of " + resumed->folder +
                    " is dropped; training goes on from the trained weights");
    }
    return nullptr;
  }
  const auto average = ops::with_memory_hint(
      "choose a smaller model, or set train.ema_decay to 0",
      [&] { return std::make_shared<WeightAverage>(decay, flat, step_options(config).kernels); });
  if (!resumed) return average;
  restore_average(*flat, *average, *resumed);
  if (!resumed->averaged) progress.note("train.ema_decay: the average starts at these weights");
  return average;
}

std::unique_ptr<Validator> make_validator(const Config& config, const RunInputs& inputs,
                                          const nn::Transformer& model, const Progress& progress,
                                          const std::shared_ptr<dist::Group>& group) {
  EvalOptions eval = eval_options(config, inputs.tokenizer);
  const auto shown = std::make_shared<WorkProgress>(progress.line(), "validating", "tok");
  eval.progress = [shown](int64_t scored, int64_t total) { shown->show(scored, total); };
  eval.group = group;
  return std::make_unique<Validator>(model, inputs.valid, eval, config.eval.tokens);
}

std::unique_ptr<Sampler> make_sampler(const Config& config, const RunInputs& inputs,
                                      const nn::Transformer& model, const Progress& progress,
                                      const std::shared_ptr<dist::Group>& group) {
  Sampler::Options sampler;
  sampler.prompts = config.train.sample_prompts;
  sampler.generate = config.generate;
  const auto shown = std::make_shared<WorkProgress>(progress.line(), "sampling", "tok");
  sampler.progress = [shown](int64_t drawn, int64_t total) { shown->show(drawn, total); };
  return std::make_unique<Sampler>(model, inputs.tokenizer, std::move(sampler), group);
}

}  // namespace stablemask
