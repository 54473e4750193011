#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/dist/group.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/nn/fp8.h"
#include "stablemask/optim/flat_parameters.h"
#include "stablemask/optim/optimizer.h"
#include "stablemask/optim/weight_average.h"

namespace stablemask {

/// Copies of named fp32 and bf16 tensors in host memory (those on the CPU are not copied) and the
/// views of them that the checkpoint writer takes. The views are valid while the object lives.
class HostTensors {
 public:
  explicit HostTensors(const std::map<std::string, at::Tensor>& tensors);
  const std::map<std::string, TensorView>& views() const { return views_; }

 private:
  std::vector<at::Tensor> kept_;
  std::map<std::string, TensorView> views_;
};

/// Throws NonFiniteError, the same in every process, naming the first tensor of process 0's
/// `weights` that has a NaN or an infinity. Every process calls it.
void require_finite(const HostTensors& weights, int64_t step, dist::Group& group);

/// Sets the master weights from trained.safetensors or, where there is none, model.safetensors.
/// Throws CheckpointError listing every tensor that is missing, unexpected or of another shape or
/// type, NonFiniteError naming the first one that has a NaN or an infinity. Weights that adapters
/// belong to come from their checkpoint, load_base (io/base_checkpoint.h). Returns what the
/// adapters of the run's checkpoints belong to, if it trains adapters.
std::optional<BaseReference> restore_weights(FlatParameters& flat, const Checkpoint& checkpoint);

/// restore_weights for a finetuning run with config `model`. The source may lack a learnable mask
/// and the run's adapters: these keep the values that the model was made with. Adapters of the
/// source are merged; ConfigError if the run has adapters, too.
std::optional<BaseReference> take_weights(FlatParameters& flat, const Checkpoint& source,
                                          const ModelConfig& model);

/// The optimizer's state, and that of fp8 products (null: none) under "fp8." + name, by the names
/// of optimizer.safetensors, in host memory of process 0; the others receive nothing. Every process
/// calls it.
std::map<std::string, at::Tensor> optimizer_state(const FlatParameters& flat,
                                                  const Optimizer& optimizer,
                                                  const nn::Fp8Products* fp8, dist::Group& group);

/// The weights to use: `master`, the trained weights by name (FlatParameters::master), with the
/// averages in the place of those that have one. In host memory of process 0; every process calls
/// it.
std::map<std::string, at::Tensor> averaged_weights(const std::map<std::string, at::Tensor>& master,
                                                   const WeightAverage& average,
                                                   dist::Group& group);

/// Sets the averages from a model.safetensors that holds them; otherwise they stay. Throws as
/// restore_weights, whose checks of the checkpoint have been made.
void restore_average(const FlatParameters& flat, WeightAverage& average,
                     const Checkpoint& checkpoint);

/// Sets the optimizer's state from optimizer.safetensors, fp32 or bf16, rounded to the nearest in
/// the optimizer's format, and that of fp8 products, which stay without a history where the
/// checkpoint has none. Throws as restore_weights, and when the checkpoint has no such file.
void restore_optimizer(const FlatParameters& flat, Optimizer& optimizer, nn::Fp8Products* fp8,
                       const Checkpoint& checkpoint);

}  // namespace stablemask
