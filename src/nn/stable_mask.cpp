#include "stablemask/nn/stable_mask.h"

#include <ATen/ATen.h>

#include <memory>

#include "src/nn/declare.h"
#include "stablemask/base/error.h"
#include "stablemask/ops/attention.h"

namespace stablemask::nn {
namespace {

at::Tensor per_head(const PerHead& spec, int64_t heads) {
  const auto count = static_cast<int64_t>(spec.values.size());
  TORCH_CHECK(count == 1 || count == heads, "expected 1 or ", heads, " values per head, got ",
              count);
  at::Tensor values = at::tensor(spec.values, at::kFloat);
  return count == heads ? values : values.repeat({heads});
}

ops::MaskLength mask_length(const StableMaskConfig& mask) {
  switch (mask.mask_length.kind) {
    case MaskLengthSpec::Kind::kFixed:
      return {ops::MaskLength::Kind::kFixed, mask.mask_length.length,
              mask.beyond == BeyondMask::kInfinite};
    case MaskLengthSpec::Kind::kInfinite:
      return {ops::MaskLength::Kind::kInfinite, 0};
    case MaskLengthSpec::Kind::kSequence:
      return {ops::MaskLength::Kind::kSequence, 0};
    case MaskLengthSpec::Kind::kContext:
      break;
  }
  throw ConfigError(
      "/model/stable_mask/mask_length: \"context\" must be resolved to a number before a model is "
      "built; set it to the training context");
}

/// x with softplus(x) = gamma. Clamped at gamma = 1e-4: at 0 the gradient of softplus vanishes.
at::Tensor inverse_softplus(const at::Tensor& gamma) {
  return at::log(at::expm1(gamma.clamp_min(1e-4)));
}

}  // namespace

StableMaskImpl::StableMaskImpl(const ModelConfig& config)
    : length_(mask_length(config.stable_mask)), learnable_(config.stable_mask.learnable) {
  const StableMaskConfig& mask = config.stable_mask;
  const GammaSpec spec = config.resolved_gamma();
  const at::Tensor gamma = spec.kind == GammaSpec::Kind::kSlopes
                               ? ops::alibi_slopes(config.heads)
                               : per_head(spec.value, config.heads);
  const at::Tensor p_base = per_head(mask.p_base, config.heads);
  if (!learnable_) {
    gamma_ = register_buffer("gamma", gamma);
    p_base_ = register_buffer("p_base", p_base);
    return;
  }
  const at::NoGradGuard no_grad;
  const auto declared = mask_parameters(config);
  gamma_raw_ = register_declared(*this, declared, "gamma_raw", config, Fill::kNone);
  gamma_raw_.copy_(inverse_softplus(gamma));
  p_base_ = register_declared(*this, declared, "p_base", config, Fill::kNone);
  p_base_.copy_(p_base);
}

ops::PseudoScores StableMaskImpl::scores() const {
  const bool scaled = log_factor_.defined();
  if (!learnable_) return {gamma_, scaled ? p_base_ + log_factor_ : p_base_, length_};
  const at::Tensor p_base = p_base_.to(at::kFloat);
  return {at::softplus(gamma_raw_.to(at::kFloat)), scaled ? p_base + log_factor_ : p_base, length_};
}

at::Tensor StableMaskImpl::pseudo_mask(int64_t length) const {
  return ops::pseudo_mask(scores(), length);
}

at::Tensor StableMaskImpl::log_pseudo_mass(int64_t length, int64_t offset) const {
  return ops::log_pseudo_mass(scores(), length, offset);
}

at::Tensor StableMaskImpl::mask_ratio(const at::Tensor& lse, int64_t offset) const {
  return ops::mask_ratio(lse, log_pseudo_mass(lse.size(-1), offset));
}

void scale_pseudo_mass(const torch::nn::Module& model, const at::Tensor& log_factor) {
  for (const auto& module : model.modules(/*include_self=*/false)) {
    const auto mask = std::dynamic_pointer_cast<StableMaskImpl>(module);
    if (mask) mask->scale_mass(log_factor);
  }
}

}  // namespace stablemask::nn
