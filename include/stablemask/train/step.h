#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/data/loader.h"
#include "stablemask/nn/model.h"
#include "stablemask/train/state.h"

namespace stablemask {

/// One optimizer step as a program for the device, without a decision or a wait on the host until
/// its end: forward and backward of every micro-batch, global norm, clip, update. On a GPU the
/// program is recorded into a CUDA graph after a few steps and replayed from then on
/// (train.cuda_graph); both ways run the same kernels and give the same bits.
class StepProgram {
 public:
  /// `model` and `state` (made from it) must outlive the program.
  StepProgram(nn::Transformer& model, FlatState& state, const Config& config);
  ~StepProgram();
  StepProgram(const StepProgram&) = delete;
  StepProgram& operator=(const StepProgram&) = delete;

  struct Result {
    double loss = 0;       ///< nats per valid target token of all micro-batches (with z-loss)
    double grad_norm = 0;  ///< global L2 norm before clipping
    /// False when one of the two is not finite: then no weight and no moment was touched.
    bool updated = false;
  };
  /// `batches` are the step's micro-batches, equal in shape from step to step; `update` counts
  /// AdamW's updates from 1. Losses are means over the valid targets of all micro-batches together.
  Result run(const std::vector<Batch>& batches, double lr, int64_t update);

  bool uses_graph() const;  ///< the next run replays a recorded graph

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stablemask
