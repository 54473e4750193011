#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stablemask/nn/linear.h"
#include "stablemask/ops/fp8_linear.h"

namespace stablemask::nn {

/// The fp8 products of a model's block projections in training (TransformerImpl::fp8), with
/// delayed scaling: the scale of an input, a weight or a gradient in one step follows from its
/// largest absolute value in the last kHistory updates. Without a history each tensor is scaled by
/// its own maximum, just in time, in steps that are slower and cannot be recorded in a CUDA graph.
///
/// The calls of a step: begin_step, forward and backward passes, finish_passes, update, and on the
/// host, once it is known that the step was an update, updated.
class Fp8Products {
 public:
  static constexpr int64_t kHistory = 16;
  /// A tensor may grow by this factor beyond its history before numbers are clipped.
  static constexpr double kMargin = 2.0;

  /// Of `projections`, whose weights stay at their place in memory; `gradients`: the format of
  /// their outputs' gradients.
  Fp8Products(const std::vector<Linear>& projections, ops::fp8::Format gradients);

  /// Passes of the model between these two multiply in fp8.
  void begin_step();
  void finish_passes();

  /// Largest absolute values in the step, fp32 [3 · projections]. Several processes reduce them to
  /// their maximum before `update`.
  const at::Tensor& maxima() const { return scaling_.maxima; }
  /// Enqueues the change to the scales of the next step. A step that is skipped according to
  /// `control` (ops::update_control) changes nothing.
  void update(const at::Tensor& control, ops::Kernels kernels);
  void updated() { just_in_time_ = false; }

  /// Whether the next step's scales do not follow from a history.
  bool just_in_time() const { return just_in_time_; }
  /// How often numbers of a tensor were clipped in an update, summed over all tensors: int64 0-dim.
  at::Tensor clipped() const { return scaling_.saturations.sum(); }

  /// What a resumed run needs, by name: "history" [3 · projections, kHistory], "scales" and
  /// "saturations" [3 · projections]. Order: by projection, of each input, weight, gradient.
  std::map<std::string, at::Tensor> state() const;
  /// After all tensors of state() were set from a checkpoint.
  void restored();

 private:
  ops::fp8::Scaling scaling_;
  std::vector<ops::fp8::ProjectionPtr> projections_;
  bool just_in_time_ = true;
};

}  // namespace stablemask::nn
