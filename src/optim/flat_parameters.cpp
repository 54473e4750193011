#include "stablemask/optim/flat_parameters.h"

#include <torch/torch.h>

#include <algorithm>
#include <string>

#include "stablemask/ops/optimizer.h"

namespace stablemask {
namespace {

/// Each parameter begins at a multiple of this many elements, so that kernels may use vector loads.
constexpr int64_t kAlignment = 64;
constexpr int64_t kSplitAtOnce = int64_t{1} << 24;

int64_t aligned(int64_t elements) { return (elements + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

FlatParameters::FlatParameters(nn::Transformer& model, at::Device device, at::ScalarType compute,
                               int64_t freeze_layers) {
  TORCH_CHECK(compute == at::kFloat || compute == at::kBFloat16,
              "FlatParameters: weights must be fp32 or bf16, not ", compute);
  torch::NoGradGuard no_grad;
  for (auto& item : model->named_buffers()) item.value().set_data(item.value().to(device));
  lay_out(model->config(), freeze_layers);
  const auto parameters = model->named_parameters();
  const auto fp32 = at::TensorOptions(at::kFloat).device(device);
  for (Layout* layout : {&trained_, &frozen_}) {
    layout->weights = at::zeros({layout->size}, fp32.dtype(compute));
    if (compute != at::kFloat) {
      layout->remainder = at::zeros({layout->size}, fp32.dtype(at::kShort));
    }
    for (const Entry& entry : layout->entries) {
      const at::Tensor& parameter = parameters[entry.name];
      set(*layout, entry, parameter);
      parameter.set_data(view(layout->weights, entry));
      parameter.set_requires_grad(layout == &trained_);
    }
  }
  gradients_ = at::zeros({trained_.size}, fp32);
  for (const Entry& entry : trained_.entries) {
    const at::Tensor& parameter = parameters[entry.name];
    // fp32 also beside bf16 weights: the ops accumulate into it in fp32.
    parameter.mutable_grad() = view(gradients_, entry);
  }
}

void FlatParameters::lay_out(const ModelConfig& config, int64_t freeze_layers) {
  const auto group_of = [](const nn::Parameter& parameter) {
    if (parameter.multiplies) return 0;
    return parameter.decays() ? 1 : 2;
  };
  const std::vector<nn::Parameter> parameters = nn::parameters(config);
  for (const int group : {0, 1, 2}) {
    for (const nn::Parameter& parameter : parameters) {
      if (group_of(parameter) != group) continue;
      Layout& layout = parameter.is_frozen(freeze_layers) ? frozen_ : trained_;
      layout.entries.push_back({parameter.name, parameter.shape, layout.size});
      layout.size += aligned(parameter.numel());
    }
    if (group == 0) overwritten_end_ = trained_.size;
    if (group == 1) decay_end_ = trained_.size;
  }
}

at::Tensor FlatParameters::view(const at::Tensor& flat, const Entry& entry) {
  return flat.narrow(0, entry.offset, c10::multiply_integers(entry.shape)).view(entry.shape);
}

void FlatParameters::set(Layout& layout, const Entry& entry, const at::Tensor& value) {
  if (!layout.remainder.defined()) {
    view(layout.weights, entry).copy_(value);
    return;
  }
  // On the device, and in pieces because splitting needs temporary memory.
  const at::Tensor flat = value.reshape({-1});
  for (int64_t begin = 0; begin < flat.numel(); begin += kSplitAtOnce) {
    const int64_t count = std::min(kSplitAtOnce, flat.numel() - begin);
    const ops::SplitWeights split =
        ops::split_weights(flat.narrow(0, begin, count).to(layout.weights.device()));
    layout.weights.narrow(0, entry.offset + begin, count).copy_(split.rounded);
    layout.remainder.narrow(0, entry.offset + begin, count).copy_(split.remainder);
  }
}

void FlatParameters::zero_gradients() { gradients_.zero_(); }

void FlatParameters::zero_accumulated_gradients() {
  gradients_.narrow(0, overwritten_end_, trained_.size - overwritten_end_).zero_();
}

at::Tensor FlatParameters::grad_norm(ops::Kernels kernels) const {
  return ops::sum_of_squares(gradients_, kernels).sqrt().to(at::kFloat);
}

std::map<std::string, at::Tensor> FlatParameters::master() const {
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

std::map<std::string, at::Tensor> FlatParameters::named_weights() const {
  std::map<std::string, at::Tensor> tensors;
  for (const Layout* layout : {&trained_, &frozen_}) {
    for (const Entry& entry : layout->entries) tensors[entry.name] = view(layout->weights, entry);
  }
  return tensors;
}

std::map<std::string, at::Tensor> FlatParameters::views(const at::Tensor& flat,
                                                        const std::string& prefix) const {
  std::map<std::string, at::Tensor> tensors;
  for (const Entry& entry : trained_.entries) tensors[prefix + entry.name] = view(flat, entry);
  return tensors;
}

void FlatParameters::set_master(const std::string& name, const at::Tensor& value) {
  torch::NoGradGuard no_grad;
  for (Layout* layout : {&trained_, &frozen_}) {
    for (const Entry& entry : layout->entries) {
      if (entry.name == name) return set(*layout, entry, value);
    }
  }
  TORCH_CHECK(false, "FlatParameters: no parameter '", name, "'");
}

int64_t FlatParameters::trained_parameters() const {
  int64_t count = 0;
  for (const Entry& entry : trained_.entries) count += c10::multiply_integers(entry.shape);
  return count;
}

}  // namespace stablemask
