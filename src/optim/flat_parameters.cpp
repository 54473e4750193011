#include "stablemask/optim/flat_parameters.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <set>
#include <string>

#include "stablemask/ops/optimizer.h"

namespace stablemask {
namespace {

using Entry = FlatLayout::Entry;

constexpr int64_t kSplitAtOnce = int64_t{1} << 24;

at::Tensor narrowed(const at::Tensor& flat, FlatRange range) {
  return flat.narrow(0, range.begin, range.size());
}

at::Tensor view(const at::Tensor& flat, const Entry& entry) {
  return flat.narrow(0, entry.offset, entry.numel()).view(entry.shape);
}

/// Copies `values` of the flat elements from `begin` on, as far as they belong to this process,
/// into the local buffer, which holds what `cover` names.
void copy_own(const FlatLayout& layout, const at::Tensor& local, int64_t begin,
              const at::Tensor& values, Cover cover = Cover::kAll) {
  for (const FlatRange& own : layout.own_ranges()) {
    const FlatRange part{std::max(begin, own.begin), std::min(begin + values.numel(), own.end)};
    if (part.begin >= part.end) continue;
    narrowed(local, layout.local(part, cover))
        .copy_(values.narrow(0, part.begin - begin, part.size()));
  }
}

/// Names of the parameters that a model has values for from the start.
std::set<std::string> set_by_config(const ModelConfig& config) {
  std::set<std::string> names;
  for (const nn::Parameter& parameter : nn::parameters(config)) {
    if (parameter.init == nn::Init::kConfig) names.insert(parameter.name);
  }
  return names;
}

void check_group(const Share& share, const dist::Group& group) {
  TORCH_CHECK(share.parts == 1 || share.parts == group.size(), "FlatParameters: ", share.parts,
              " parts cannot be gathered from ", group.size(), " processes");
}

/// The bucket's values in host memory; undefined on all processes but process 0.
at::Tensor gathered(const FlatLayout& layout, const at::Tensor& local, const Bucket& bucket,
                    dist::Group& group, Cover cover = Cover::kAll) {
  check_group(layout.share(), group);
  const FlatRange own = layout.own(bucket);
  at::Tensor values = narrowed(local, layout.local(own, cover));
  if (layout.share().parts > 1) {
    const at::Tensor whole = at::empty({bucket.range.size()}, local.options());
    whole.narrow(0, own.begin - bucket.range.begin, own.size()).copy_(values);
    group.all_gather(whole);
    values = whole;
  }
  return group.rank() == 0 ? group.read(values) : at::Tensor();
}

at::Tensor joined(const at::Tensor& weights, const at::Tensor& remainder) {
  return remainder.defined() ? ops::join_weights({weights, remainder}) : weights;
}

}  // namespace

FlatParameters::FlatParameters(nn::Transformer& model, at::Device device, at::ScalarType compute,
                               int64_t freeze_layers, Share share)
    : trained_{FlatLayout(model->config(), freeze_layers, FlatLayout::Kind::kTrained, share),
               {},
               {}},
      frozen_{FlatLayout(model->config(), freeze_layers, FlatLayout::Kind::kFrozen), {}, {}},
      adapters_only_(model->config().lora.rank > 0) {
  TORCH_CHECK(compute == at::kFloat || compute == at::kBFloat16,
              "FlatParameters: weights must be fp32 or bf16, not ", compute);
  at::NoGradGuard no_grad;
  for (auto& item : model->named_buffers()) item.value().set_data(item.value().to(device));
  const auto parameters = model->named_parameters();
  const std::set<std::string> of_config = set_by_config(model->config());
  const auto fp32 = at::TensorOptions(at::kFloat).device(device);
  for (Buffers* buffers : {&trained_, &frozen_}) {
    const FlatLayout& layout = buffers->layout;
    buffers->weights = at::zeros({layout.size()}, fp32.dtype(compute));
    if (compute != at::kFloat && !(adapters_only_ && buffers == &frozen_)) {
      buffers->remainder = at::zeros({layout.local_size()}, fp32.dtype(at::kShort));
    }
    for (const Entry& entry : layout.entries()) {
      const at::Tensor& parameter = parameters[entry.name];
      if (model->has_weights() || of_config.contains(entry.name)) set(*buffers, entry, parameter);
      parameter.set_data(view(buffers->weights, entry));
      parameter.set_requires_grad(buffers == &trained_);
    }
  }
  gradients_ = at::zeros({size()}, fp32);
  for (const Entry& entry : layout().entries()) {
    const at::Tensor& parameter = parameters[entry.name];
    // fp32 also beside bf16 weights: the ops accumulate into it in fp32.
    parameter.mutable_grad() = view(gradients_, entry);
  }
}

void FlatParameters::set(Buffers& buffers, const Entry& entry, const at::Tensor& value) {
  if (buffers.weights.scalar_type() == at::kFloat) {
    view(buffers.weights, entry).copy_(value);
    return;
  }
  // On the device, and in pieces because splitting needs temporary memory.
  const at::Tensor flat = value.reshape({-1});
  for (int64_t begin = 0; begin < flat.numel(); begin += kSplitAtOnce) {
    const int64_t count = std::min(kSplitAtOnce, flat.numel() - begin);
    const ops::SplitWeights split =
        ops::split_weights(flat.narrow(0, begin, count).to(buffers.weights.device()));
    buffers.weights.narrow(0, entry.offset + begin, count).copy_(split.rounded);
    if (!buffers.remainder.defined()) continue;
    copy_own(buffers.layout, buffers.remainder, entry.offset + begin, split.remainder);
  }
}

void FlatParameters::zero_gradients() { gradients_.zero_(); }

void FlatParameters::zero_accumulated_gradients() {
  narrowed(gradients_, {layout().overwritten_end(), size()}).zero_();
}

at::Tensor FlatParameters::grad_norm(ops::Kernels kernels) const {
  return ops::sum_of_squares(gradients_, kernels).sqrt().to(at::kFloat);
}

void FlatParameters::gather_weights(dist::Group& group) {
  if (!stale_) return;
  for (const Bucket& bucket : layout().buckets()) gather_weights(bucket, group);
  stale_ = false;
}

void FlatParameters::gather_weights(const Bucket& bucket, dist::Group& group) const {
  check_group(layout().share(), group);
  if (layout().share().parts > 1) group.all_gather(narrowed(weights(), bucket.range));
}

std::map<std::string, at::Tensor> FlatParameters::gather(const at::Tensor& local,
                                                         const std::string& prefix,
                                                         dist::Group& group, Cover cover) const {
  at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> tensors;
  for (const Bucket& bucket : layout().buckets()) {
    if (!layout().covers(cover, bucket.range)) continue;
    const at::Tensor values = gathered(layout(), local, bucket, group, cover);
    if (values.defined()) tensors.merge(layout().views(values, bucket.range, prefix));
  }
  return tensors;
}

std::map<std::string, at::Tensor> FlatParameters::master(dist::Group& group) {
  at::NoGradGuard no_grad;
  gather_weights(group);
  std::map<std::string, at::Tensor> tensors;
  const bool splits = trained_.remainder.defined();
  for (const Bucket& bucket : layout().buckets()) {
    const at::Tensor low = splits ? gathered(layout(), remainder(), bucket, group) : at::Tensor();
    if (group.rank() != 0) continue;
    const at::Tensor high = group.read(narrowed(weights(), bucket.range));
    tensors.merge(layout().views(joined(high, low), bucket.range, ""));
  }
  if (group.rank() != 0 || adapters_only_) return tensors;
  const at::Tensor low = splits ? group.read(frozen_.remainder) : at::Tensor();
  const FlatLayout& frozen = frozen_.layout;
  const at::Tensor values = joined(group.read(frozen_.weights), low);
  tensors.merge(frozen.views(values, {0, frozen.size()}, ""));
  return tensors;
}

std::map<std::string, at::Tensor> FlatParameters::master() {
  return master(*dist::single_process_group());
}

std::map<std::string, at::Tensor> FlatParameters::named_weights() const {
  std::map<std::string, at::Tensor> tensors = views(weights(), "");
  const FlatLayout& frozen = frozen_.layout;
  tensors.merge(frozen.views(frozen_.weights, {0, frozen.size()}, ""));
  return tensors;
}

void FlatParameters::set_master(const std::string& name, const at::Tensor& value) {
  at::NoGradGuard no_grad;
  for (Buffers* buffers : {&trained_, &frozen_}) {
    if (const Entry* entry = buffers->layout.find(name)) return set(*buffers, *entry, value);
  }
  TORCH_CHECK(false, "FlatParameters: no parameter '", name, "'");
}

void FlatParameters::set_local(at::Tensor& local, const std::string& name, const at::Tensor& value,
                               Cover cover) const {
  at::NoGradGuard no_grad;
  const Entry* entry = layout().find(name);
  TORCH_CHECK(entry, "FlatParameters: no trained parameter '", name, "'");
  copy_own(layout(), local, entry->offset, value.reshape({-1}), cover);
}

void init_weights(nn::Transformer& model, FlatParameters& flat, uint64_t seed,
                  nn::InitScope scope) {
  nn::initial_weights(
      model->config(), seed, scope,
      [&](const std::string& name, const at::Tensor& values) { flat.set_master(name, values); });
  if (scope == nn::InitScope::kAll) model->weights_are_set();
}

}  // namespace stablemask
