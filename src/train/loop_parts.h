#pragma once

#include <memory>
#include <optional>

#include "src/train/recorder.h"
#include "src/train/run_folder.h"
#include "src/train/run_inputs.h"
#include "src/train/sampler.h"
#include "src/train/saver.h"
#include "src/train/stepper.h"
#include "src/train/validator.h"
#include "stablemask/config/config.h"
#include "stablemask/data/loader.h"
#include "stablemask/dist/group.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/nn/model.h"
#include "stablemask/optim/weight_average.h"
#include "stablemask/report/progress.h"

/// The parts of a training loop as a run's resolved config describes them.
namespace stablemask {

/// Without what the sets of sequences state.
LoaderOptions loader_options(const Config& config, const dist::Group& group);
Stepper::Options stepper_options(const Config& config);
/// `seconds_before`: of the run before this process.
Recorder::Options recorder_options(const Config& config, at::Device device, double seconds_before);
/// All but the base of adapters.
Saver::Options saver_options(const Config& config, const RunInputs& inputs,
                             const RunFolder& folder);

/// The average of train.ema_decay; null: none. It starts at the weights of `flat`, or where that of
/// the checkpoint `resumed` stands. Says so on `progress` where that is news.
std::shared_ptr<WeightAverage> make_average(const Config& config,
                                            const std::shared_ptr<FlatParameters>& flat,
                                            const std::optional<Checkpoint>& resumed,
                                            Progress& progress);

/// Both show their work on the line of `progress`. The run has a validation shard.
std::unique_ptr<Validator> make_validator(const Config& config, const RunInputs& inputs,
                                          const nn::Transformer& model, const Progress& progress,
                                          const std::shared_ptr<dist::Group>& group);
std::unique_ptr<Sampler> make_sampler(const Config& config, const RunInputs& inputs,
                                      const nn::Transformer& model, const Progress& progress,
                                      const std::shared_ptr<dist::Group>& group);

}  // namespace stablemask
