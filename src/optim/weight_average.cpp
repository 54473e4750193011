#include "stablemask/optim/weight_average.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "stablemask/ops/ema.h"
#include "stablemask/ops/optimizer.h"

namespace stablemask {
namespace {

/// Rounding needs several times the memory of its piece.
constexpr int64_t kRoundedAtOnce = int64_t{1} << 22;

}  // namespace

WeightAverage::WeightAverage(double decay, std::shared_ptr<FlatParameters> parameters,
                             ops::Kernels kernels)
    : decay_(decay),
      parameters_(std::move(parameters)),
      kernels_(kernels),
      average_(at::zeros({parameters_->layout().local_size()},
                         parameters_->weights().options().dtype(at::kFloat))) {
  // With decay 0 the average becomes the weights.
  const at::Tensor control = ops::update_control(0.0, 1).to(average_.device());
  for (const FlatRange& range : parameters_->layout().own_ranges()) enqueue(range, 0.0, control);
}

void WeightAverage::update(FlatRange range, const at::Tensor& control) {
  enqueue(range, decay_, control);
}

void WeightAverage::update(const at::Tensor& control) {
  for (const FlatRange& range : parameters_->layout().own_ranges()) update(range, control);
}

void WeightAverage::enqueue(FlatRange range, double decay, const at::Tensor& control) {
  if (range.begin == range.end) return;
  const at::NoGradGuard no_grad;
  const FlatRange place = parameters_->layout().local(range);
  const auto local = [&](const at::Tensor& all) {
    return all.narrow(0, place.begin, place.size());
  };
  at::Tensor average = local(average_), remainder;
  if (parameters_->remainder().defined()) remainder = local(parameters_->remainder());
  ops::ema_(average, parameters_->weights().narrow(0, range.begin, range.size()), remainder, decay,
            control, kernels_);
}

std::map<std::string, at::Tensor> WeightAverage::gather(dist::Group& group) const {
  return parameters_->gather(average_, "", group);
}

void WeightAverage::set(const std::string& name, const at::Tensor& value) {
  parameters_->set_local(average_, name, value);
}

/// With the weights complete on every process, and set aside.
AveragedWeights::AveragedWeights(std::shared_ptr<FlatParameters> parameters, dist::Group& group)
    : parameters_(std::move(parameters)) {
  const at::NoGradGuard no_grad;
  parameters_->gather_weights(group);
  trained_ = parameters_->weights().clone();
}

AveragedWeights::AveragedWeights(std::shared_ptr<FlatParameters> parameters,
                                 const WeightAverage& average, dist::Group& group)
    : AveragedWeights(std::move(parameters), group) {  // whatever throws below, the weights return
  const at::NoGradGuard no_grad;
  const FlatLayout& layout = parameters_->layout();
  const at::Tensor& weights = parameters_->weights();
  for (const FlatRange& range : layout.own_ranges()) {
    const at::Tensor values = average.buffer().narrow(0, layout.local(range).begin, range.size());
    for (int64_t begin = 0; begin < range.size(); begin += kRoundedAtOnce) {
      const int64_t count = std::min(kRoundedAtOnce, range.size() - begin);
      const at::Tensor piece = values.narrow(0, begin, count);
      weights.narrow(0, range.begin + begin, count)
          .copy_(weights.scalar_type() == at::kFloat ? piece : ops::split_weights(piece).rounded);
    }
  }
  parameters_->weights_changed();
  parameters_->gather_weights(group);
}

/// After a device error the copy fails; the error is thrown by the next call that synchronises.
AveragedWeights::~AveragedWeights() {
  try {
    const at::NoGradGuard no_grad;
    parameters_->weights().copy_(trained_);
  } catch (const std::exception&) {
  }
}

}  // namespace stablemask
