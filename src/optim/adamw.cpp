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
        ops::Kernels kernels, int64_t seed, Cover cover)
      : config_(config),
        parameters_(std::move(parameters)),
        kernels_(kernels),
        seed_(seed),
        cover_(cover),
        m_(at::zeros({parameters_->layout().local_size(cover)},
                     parameters_->gradients().options().dtype(
                         config.state == StateDtype::kBf16 ? at::kBFloat16 : at::kFloat))),
        v_(at::zeros_like(m_)) {}

  void update(FlatRange range, const at::Tensor& control) override {
    const int64_t decay_end = std::clamp(parameters_->decay_end(), range.begin, range.end);
    update_part({range.begin, decay_end}, config_.weight_decay, control);
    update_part({decay_end, range.end}, 0.0, control);
  }

  std::map<std::string, Buffer> buffers() const override {
    return {{"m", {m_, cover_}}, {"v", {v_, cover_}}};
  }

 private:
  void update_part(FlatRange range, double weight_decay, const at::Tensor& control) {
    if (range.begin == range.end) return;
    const auto flat = [&](const at::Tensor& all) {
      return all.narrow(0, range.begin, range.size());
    };
    const FlatLayout& layout = parameters_->layout();
    const auto local = [&](const at::Tensor& all, Cover cover) {
      const FlatRange place = layout.local(range, cover);
      return all.narrow(0, place.begin, place.size());
    };
    at::Tensor weights = flat(parameters_->weights()), remainder;
    at::Tensor m = local(m_, cover_), v = local(v_, cover_);
    if (parameters_->remainder().defined()) {
      remainder = local(parameters_->remainder(), Cover::kAll);
    }
    const ops::AdamWArgs args{config_.beta1, config_.beta2, config_.eps,
                              weight_decay,  seed_,         layout.number_of(range.begin)};
    ops::adamw_(weights, remainder, m, v, flat(parameters_->gradients()), args, control, kernels_);
  }

  OptimizerConfig config_;
  std::shared_ptr<FlatParameters> parameters_;
  ops::Kernels kernels_;
  int64_t seed_;
  Cover cover_;
  at::Tensor m_, v_;
};

}  // namespace

std::unique_ptr<Optimizer> make_adamw(const OptimizerConfig& config,
                                      std::shared_ptr<FlatParameters> parameters,
                                      ops::Kernels kernels, int64_t seed, Cover cover) {
  return std::make_unique<AdamW>(config, std::move(parameters), kernels, seed, cover);
}

}  // namespace stablemask
