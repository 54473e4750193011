#include "stablemask/nn/fp8.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "stablemask/nn/model.h"

namespace stablemask::nn {
namespace {

/// Tensors of a projection that have a scale.
constexpr int64_t kScaled = 3;

}  // namespace

Fp8Products::Fp8Products(const std::vector<Linear>& projections, ops::fp8::Format gradients) {
  TORCH_CHECK(!projections.empty(), "Fp8Products: no projections");
  std::vector<ops::fp8::Format> formats;
  for (size_t i = 0; i < projections.size(); ++i) {
    formats.insert(formats.end(), {ops::fp8::Format::kE4M3, ops::fp8::Format::kE4M3, gradients});
  }
  scaling_ = ops::fp8::make_scaling(formats, kHistory, kMargin, projections[0].weight().device());
  int64_t slot = 0;
  for (const Linear& linear : projections) {
    const ops::fp8::ProjectionPtr& fp8 = linear.fp8();
    fp8->input = scaling_.slot(slot);
    fp8->weight = scaling_.slot(slot + 1);
    fp8->gradient = scaling_.slot(slot + 2);
    fp8->copy = ops::fp8::make_matrix(linear.weight().size(0), linear.weight().size(1), fp8->weight,
                                      ops::fp8::Parts::kBoth);
    fp8->active = false;
    projections_.push_back(fp8);
    slot += kScaled;
  }
}

void Fp8Products::begin_step() {
  for (const ops::fp8::ProjectionPtr& fp8 : projections_) {
    fp8->active = true;
    fp8->copied = false;
    fp8->just_in_time = just_in_time_;
  }
}

void Fp8Products::finish_passes() {
  for (const ops::fp8::ProjectionPtr& fp8 : projections_) fp8->active = false;
}

void Fp8Products::update(const at::Tensor& control, ops::Kernels kernels) {
  const at::NoGradGuard no_grad;
  // A maximum of 0, or the NaN that 0 · ∞ is, leaves history and scale.
  scaling_.maxima.mul_(control.select(0, 2).ge(0));
  ops::fp8::update_scales_(scaling_, kernels);
}

std::map<std::string, at::Tensor> Fp8Products::state() const {
  return {{"history", scaling_.history},
          {"scales", scaling_.scales},
          {"saturations", scaling_.saturations}};
}

void Fp8Products::restored() {
  const at::NoGradGuard no_grad;
  scaling_.inverses.copy_(scaling_.scales.reciprocal());
  just_in_time_ = !(scaling_.history > 0).any().item<bool>();
}

void use_fp8(Transformer& model, ops::fp8::Format gradients) {
  std::vector<Linear> projections = model->linears();
  projections.erase(projections.begin());  // the head
  model->fp8 = std::make_shared<Fp8Products>(projections, gradients);
}

}  // namespace stablemask::nn
