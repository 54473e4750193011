#include "stablemask/train/state.h"

#include <torch/torch.h>

#include <algorithm>
#include <string>
#include <utility>

#include "stablemask/ops/optimizer.h"

namespace stablemask {
namespace {

/// Every tensor begins at a multiple of this many elements, so that kernels may load whole vectors.
constexpr int64_t kAlignment = 64;
constexpr int64_t kSplitAtOnce = int64_t{1} << 24;

int64_t aligned(int64_t elements) { return (elements + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

FlatState::FlatState(nn::Transformer& model, at::Device device, at::ScalarType compute,
                     int64_t freeze_layers) {
  torch::NoGradGuard no_grad;
  for (auto& item : model->named_buffers()) item.value().set_data(item.value().to(device));
  const auto parameters = model->named_parameters();
  const auto group_of = [](const nn::Parameter& parameter) {
    if (parameter.multiplies) return 0;
    return parameter.decays() ? 1 : 2;
  };
  for (const int group : {0, 1, 2}) {
    for (const nn::Parameter& parameter : nn::parameters(model->config())) {
      if (group_of(parameter) != group) continue;
      Layout& layout = parameter.is_frozen(freeze_layers) ? frozen_ : trained_;
      layout.entries.push_back({parameter.name, parameter.shape, layout.size});
      layout.size += aligned(parameter.numel());
    }
    if (group == 0) overwritten_end_ = trained_.size;
    if (group == 1) decay_end_ = trained_.size;
  }
  TORCH_CHECK(compute == at::kFloat || compute == at::kBFloat16, "FlatState: not for ", compute);
  const auto fp32 = at::TensorOptions(at::kFloat).device(device);
  for (Layout* layout : {&trained_, &frozen_}) {
    layout->weights = at::zeros({layout->size}, fp32.dtype(compute));
    if (compute != at::kFloat)
      layout->remainder = at::zeros({layout->size}, fp32.dtype(at::kShort));
    for (const Entry& entry : layout->entries) {
      at::Tensor parameter = parameters[entry.name];
      set(*layout, entry, parameter);
      parameter.set_data(view(layout->weights, entry));
      parameter.set_requires_grad(layout == &trained_);
    }
  }
  grad_ = at::zeros({trained_.size}, fp32);
  m_ = at::zeros({trained_.size}, fp32);
  v_ = at::zeros({trained_.size}, fp32);
  for (const Entry& entry : trained_.entries) {
    at::Tensor parameter = parameters[entry.name];
    // fp32 also beside bf16 weights: ops accumulate into it in its own precision.
    parameter.mutable_grad() = view(grad_, entry);
  }
}

at::Tensor FlatState::view(const at::Tensor& flat, const Entry& entry) {
  return flat.narrow(0, entry.offset, c10::multiply_integers(entry.shape)).view(entry.shape);
}

void FlatState::set(Layout& layout, const Entry& entry, const at::Tensor& value) {
  if (!layout.remainder.defined()) {
    view(layout.weights, entry).copy_(value);
    return;
  }
  // On the device and piece by piece: splitting needs room of its own.
  const at::Tensor flat = value.reshape({-1});
  for (int64_t begin = 0; begin < flat.numel(); begin += kSplitAtOnce) {
    const int64_t count = std::min(kSplitAtOnce, flat.numel() - begin);
    const ops::SplitWeights split =
        ops::split_weights(flat.narrow(0, begin, count).to(layout.weights.device()));
    layout.weights.narrow(0, entry.offset + begin, count).copy_(split.rounded);
    layout.remainder.narrow(0, entry.offset + begin, count).copy_(split.remainder);
  }
}

void FlatState::zero_grad() { grad_.zero_(); }

void FlatState::zero_added_grad() {
  grad_.narrow(0, overwritten_end_, trained_.size - overwritten_end_).zero_();
}

void FlatState::update(const OptimizerConfig& config, const at::Tensor& control,
                       ops::Kernels kernels) {
  ops::AdamWArgs args;
  args.beta1 = config.beta1;
  args.beta2 = config.beta2;
  args.eps = config.eps;
  const std::pair<int64_t, int64_t> ranges[] = {{0, decay_end_}, {decay_end_, trained_.size}};
  for (const auto& [begin, end] : ranges) {
    if (begin == end) continue;
    args.weight_decay = begin == 0 && decay_end_ > 0 ? config.weight_decay : 0.0;
    const auto range = [&](const at::Tensor& flat) { return flat.narrow(0, begin, end - begin); };
    at::Tensor weights = range(trained_.weights), m = range(m_), v = range(v_), remainder;
    if (trained_.remainder.defined()) remainder = range(trained_.remainder);
    ops::adamw_(weights, remainder, m, v, range(grad_), args, control, kernels);
  }
}

at::Tensor FlatState::grad_norm(ops::Kernels kernels) const {
  return ops::sum_of_squares(grad_, kernels).sqrt().to(at::kFloat);
}

std::map<std::string, at::Tensor> FlatState::master() const {
  torch::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> tensors;
  for (const Layout* layout : {&trained_, &frozen_}) {
    for (const Entry& entry : layout->entries) {
      const auto on_cpu = [&](const at::Tensor& flat) { return view(flat, entry).to(at::kCPU); };
      tensors[entry.name] =
          layout->remainder.defined()
              ? ops::join_weights({on_cpu(layout->weights), on_cpu(layout->remainder)})
              : on_cpu(layout->weights);
    }
  }
  return tensors;
}

std::map<std::string, at::Tensor> FlatState::named_weights() const {
  std::map<std::string, at::Tensor> tensors;
  for (const Layout* layout : {&trained_, &frozen_}) {
    for (const Entry& entry : layout->entries) tensors[entry.name] = view(layout->weights, entry);
  }
  return tensors;
}

std::map<std::string, at::Tensor> FlatState::named_optimizer() const {
  std::map<std::string, at::Tensor> tensors;
  for (const Entry& entry : trained_.entries) {
    tensors["m." + entry.name] = view(m_, entry);
    tensors["v." + entry.name] = view(v_, entry);
  }
  return tensors;
}

void FlatState::set_master(const std::string& name, const at::Tensor& value) {
  torch::NoGradGuard no_grad;
  for (Layout* layout : {&trained_, &frozen_}) {
    for (const Entry& entry : layout->entries) {
      if (entry.name == name) return set(*layout, entry, value);
    }
  }
  TORCH_CHECK(false, "FlatState: no parameter '", name, "'");
}

int64_t FlatState::trained_parameters() const {
  int64_t count = 0;
  for (const Entry& entry : trained_.entries) count += c10::multiply_integers(entry.shape);
  return count;
}

}  // namespace stablemask
