#include "src/optim/adamw.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "stablemask/ops/optimizer.h"

namespace stablemask {
namespace {

class AdamW final : public Optimizer {
 public:
  AdamW(const OptimizerConfig& config, std::shared_ptr<FlatParameters> parameters,
        ops::Kernels kernels)
      : config_(config),
        parameters_(std::move(parameters)),
        kernels_(kernels),
        m_(at::zeros_like(parameters_->gradients())),
        v_(at::zeros_like(parameters_->gradients())) {}

  void update(FlatRange range, const at::Tensor& control) override {
    const int64_t decay_end = std::clamp(parameters_->decay_end(), range.begin, range.end);
    update_part({range.begin, decay_end}, config_.weight_decay, control);
    update_part({decay_end, range.end}, 0.0, control);
  }

  std::map<std::string, at::Tensor> named_state() const override {
    std::map<std::string, at::Tensor> state = parameters_->views(m_, "m.");
    state.merge(parameters_->views(v_, "v."));
    return state;
  }

 private:
  void update_part(FlatRange range, double weight_decay, const at::Tensor& control) {
    if (range.begin == range.end) return;
    const auto part = [&](const at::Tensor& flat) {
      return flat.narrow(0, range.begin, range.end - range.begin);
    };
    at::Tensor weights = part(parameters_->weights()), m = part(m_), v = part(v_), remainder;
    if (parameters_->remainder().defined()) remainder = part(parameters_->remainder());
    const ops::AdamWArgs args{config_.beta1, config_.beta2, config_.eps, weight_decay};
    ops::adamw_(weights, remainder, m, v, part(parameters_->gradients()), args, control, kernels_);
  }

  OptimizerConfig config_;
  std::shared_ptr<FlatParameters> parameters_;
  ops::Kernels kernels_;
  at::Tensor m_, v_;
};

}  // namespace

std::unique_ptr<Optimizer> make_adamw(const OptimizerConfig& config,
                                      std::shared_ptr<FlatParameters> parameters,
                                      ops::Kernels kernels) {
  return std::make_unique<AdamW>(config, std::move(parameters), kernels);
}

}  // namespace stablemask
