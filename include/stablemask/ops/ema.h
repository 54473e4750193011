#pragma once

#include <ATen/core/Tensor.h>

#include "stablemask/ops/kernels.h"

namespace stablemask::ops {

/// One update of an exponential moving average of weights, in place on flat buffers of equal size:
///   average = d·average + (1 − d)·w,  d = min(decay, (1 + t) / (10 + t)),
/// computed as average + (1 − d)·(w − average), so that the rounding of d is no bias. The bound on
/// d lets the average follow the first updates; it is that of TensorFlow's
/// tf.train.ExponentialMovingAverage with num_updates = t. `average` is fp32; w is fp32 in
/// `weights` with `remainder` undefined, or split (ops/optimizer.h, SplitWeights). `control` is
/// that of the optimizer's update (ops::update_control), on the buffers' device: t, and a negative
/// grad_scale, with which nothing changes. 0 ≤ decay < 1; with 0 the average becomes w. Throws
/// c10::Error if sizes, dtypes, devices or decay differ from this. No host synchronisation.
void ema_(at::Tensor& average, const at::Tensor& weights, const at::Tensor& remainder, double decay,
          const at::Tensor& control, Kernels kernels = Kernels::kFused);

namespace reference {
/// The formula in plain ATen; also in fp64, with fp64 weights and no remainder.
void ema_(at::Tensor& average, const at::Tensor& weights, const at::Tensor& remainder, double decay,
          const at::Tensor& control);
}  // namespace reference

}  // namespace stablemask::ops
