#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/data/batch.h"
#include "stablemask/dist/group.h"
#include "stablemask/nn/model.h"
#include "stablemask/ops/kernels.h"
#include "stablemask/optim/flat_parameters.h"
#include "stablemask/optim/optimizer.h"
#include "stablemask/optim/weight_average.h"

namespace stablemask {

/// The parts of a config that the computation of a step depends on.
struct StepOptions {
  double clip_norm = 0;  ///< 0: no clipping
  double z_loss = 0;
  bool cuda_graph = false;
  bool activation_checkpointing = false;
  bool document_mask = false;
  ops::Kernels kernels = ops::Kernels::kFused;  ///< kFusedBf16 for the passes of training only
  at::ScalarType reduce_dtype = at::kFloat;     ///< of the gradients' sum over processes; or bf16
  bool dropout = false;  ///< the model's adapters have one; its elements depend on `seed`
  uint64_t seed = 0;
};
StepOptions step_options(const Config& config);

/// Turns on what train.precision asks for beside step_options, of a model that FlatParameters has
/// moved to its device. Throws ConfigError where bf16 or fp8 products are not possible: on this
/// device, or with weights of this dtype on a GPU.
void use_precision(nn::Transformer& model, const TrainConfig& train);

/// Computes optimizer steps: forward and backward of all micro-batches, gradient norm, clipping and
/// update. A step is enqueued on the device as a whole; the host waits only when it reads the
/// result. Processes exchange gradients and weights while the computation goes on. On a GPU the
/// step is recorded as a CUDA graph after a few steps and replayed from then on
/// (StepOptions::cuda_graph), with the same kernels in the same order.
class StepProgram {
 public:
  /// `flat` and `optimizer` belong to `model`. Gradients, loss and the count of targets are summed
  /// over the processes of `group`, which all have the whole model or (FlatLayout's Share) each
  /// update a part of it. A model with fp8 products multiplies by them, and its scales change with
  /// the weights. `average`, if there is one, follows the weights of `flat`.
  StepProgram(nn::Transformer model, std::shared_ptr<FlatParameters> flat,
              std::shared_ptr<Optimizer> optimizer, const StepOptions& options,
              std::shared_ptr<dist::Group> group = dist::single_process_group(),
              std::shared_ptr<WeightAverage> average = nullptr);
  ~StepProgram();
  StepProgram(const StepProgram&) = delete;
  StepProgram& operator=(const StepProgram&) = delete;

  struct Result {
    double loss = 0;       ///< nats per valid target of all micro-batches, z-loss included
    double grad_norm = 0;  ///< global L2 norm before clipping
    /// False when one of the two is not finite: weights, optimizer state and average are unchanged.
    bool updated = false;
    int64_t valid_targets = 0;  ///< of all micro-batches of all processes
    int64_t fp8_clipped = 0;    ///< nn::Fp8Products::clipped
  };
  /// `batches` are the step's micro-batches, with the same shapes in every step; `update` counts
  /// the optimizer's updates from 1. The loss is the mean over the valid targets of all
  /// micro-batches.
  Result run(const std::vector<Batch>& batches, double lr, int64_t update);

  /// After run with several shares: completes the weights, of which a process updates its own part
  /// and takes the others at the front of the next run. Every process calls it, before it uses the
  /// model otherwise; without effect when nothing is missing.
  void gather_weights();
  /// As gather_weights; while the result lives, the model has the averages for its weights. Null:
  /// there is no average. Every process calls it.
  std::unique_ptr<AveragedWeights> use_averages();

  /// After an exception from run: whether weights and optimizer state are still those from before
  /// the step. False when it is unknown how much of the update was done.
  bool unchanged_after_failure() const;

  bool uses_graph() const;  ///< the next run replays a recorded graph

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stablemask
