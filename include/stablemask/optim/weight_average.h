#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>

#include "stablemask/dist/group.h"
#include "stablemask/ops/kernels.h"
#include "stablemask/optim/flat_parameters.h"

namespace stablemask {

/// Exponential moving average of the trained parameters' fp32 values with the arithmetic of
/// ops::ema_, in a local buffer: 4 bytes for each parameter that this process updates.
class WeightAverage {
 public:
  /// Starts at the parameters' present values. 0 ≤ decay < 1.
  WeightAverage(double decay, std::shared_ptr<FlatParameters> parameters,
                ops::Kernels kernels = ops::Kernels::kFused);

  /// Enqueues the part of an update that belongs to `range`, inside one of the layout's
  /// own_ranges(); after the optimizer's update of the range, and with its `control`.
  void update(FlatRange range, const at::Tensor& control);
  /// Of everything that this process updates.
  void update(const at::Tensor& control);

  /// fp32 [layout().local_size()].
  const at::Tensor& buffer() const { return average_; }
  /// The average of each trained parameter by its name, in host memory of process 0; the others
  /// receive nothing. Every process calls it.
  std::map<std::string, at::Tensor> gather(dist::Group& group) const;
  /// Sets the average of a trained parameter to the fp32 `value` of the same shape; an unknown name
  /// is a c10::Error.
  void set(const std::string& name, const at::Tensor& value);

 private:
  void enqueue(FlatRange range, double decay, const at::Tensor& control);

  double decay_;
  std::shared_ptr<FlatParameters> parameters_;
  ops::Kernels kernels_;
  at::Tensor average_;
};

/// While it lives, the model computes with the averages in the place of its trained weights,
/// rounded to the weights' dtype as a checkpoint's are. The trained weights are kept in one buffer
/// of their dtype and size, [FlatParameters::size()], and have their bits back afterwards.
class AveragedWeights {
 public:
  /// Every process makes one at the same time, and no step runs while it lives.
  AveragedWeights(std::shared_ptr<FlatParameters> parameters, const WeightAverage& average,
                  dist::Group& group);
  ~AveragedWeights();
  AveragedWeights(const AveragedWeights&) = delete;
  AveragedWeights& operator=(const AveragedWeights&) = delete;

 private:
  AveragedWeights(std::shared_ptr<FlatParameters> parameters, dist::Group& group);

  std::shared_ptr<FlatParameters> parameters_;
  at::Tensor trained_;
};

/// Bytes of the average for each trained parameter.
constexpr int64_t kAverageBytesPerParameter = 4;

}  // namespace stablemask
