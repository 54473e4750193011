#include "src/train/snapshot.h"

#include <ATen/ATen.h>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/dist/agreement.h"
#include "stablemask/infer/adapters.h"
#include "stablemask/infer/weights.h"
#include "stablemask/io/base_checkpoint.h"
#include "stablemask/io/finite.h"
#include "stablemask/nn/parameters.h"

namespace stablemask {

HostTensors::HostTensors(const std::map<std::string, at::Tensor>& tensors) {
  for (const auto& [name, tensor] : tensors) {
    const bool bf16 = tensor.scalar_type() == at::kBFloat16;
    const at::Tensor host =
        tensor.detach().to(at::kCPU, bf16 ? at::kBFloat16 : at::kFloat).contiguous();
    views_[name] = {bf16 ? ElementType::kBf16 : ElementType::kF32, host.sizes().vec(),
                    host.const_data_ptr()};
    kept_.push_back(host);
  }
}

void require_finite(const HostTensors& weights, int64_t step, dist::Group& group) {
  const std::string name = dist::text_of_first(
      group, group.rank() == 0 ? first_not_finite(weights.views()) : std::string());
  if (name.empty()) return;
  throw NonFiniteError(
      format("step %lld: %s holds values that are not finite, so the step is not saved; continue "
             "from the newest checkpoint with a lower optimizer.lr",
             static_cast<long long>(step), name.c_str()));
}

namespace {

/// Of the trained weights.
void restore(FlatParameters& flat, const std::map<std::string, at::Tensor>& wanted,
             const Checkpoint& checkpoint) {
  require_finite_weights(checkpoint);
  const bool averaged = checkpoint.trained.has_value();
  for_each_tensor(
      wanted, averaged ? *checkpoint.trained : checkpoint.model,
      averaged ? checkpoint.folder + "/trained.safetensors" : checkpoint.model_path,
      [&](const std::string& name, const at::Tensor& host) { flat.set_master(name, host); });
}

/// The parameters that the run's own checkpoints hold.
std::map<std::string, at::Tensor> saved_parameters(const FlatParameters& flat, bool adapters) {
  std::map<std::string, at::Tensor> wanted = flat.named_weights();
  if (!adapters) return wanted;
  std::erase_if(wanted, [&](const auto& item) { return !flat.layout().find(item.first); });
  return wanted;
}

}  // namespace

std::optional<BaseReference> restore_weights(FlatParameters& flat, const Checkpoint& checkpoint) {
  const std::optional<Checkpoint> base = load_base(checkpoint);
  const std::map<std::string, at::Tensor> own = saved_parameters(flat, base.has_value());
  restore(flat, own, checkpoint);
  if (!base) return std::nullopt;
  std::map<std::string, at::Tensor> frozen = flat.named_weights();
  for (const auto& [name, tensor] : own) frozen.erase(name);
  restore(flat, frozen, *base);
  return BaseReference{base->folder, base->model_sha256};
}

std::optional<BaseReference> take_weights(FlatParameters& flat, const Checkpoint& source,
                                          const ModelConfig& model) {
  const std::optional<Checkpoint> base = load_base(source);
  if (base && model.lora.rank > 0) {
    throw ConfigError("/lora/rank: " + source.folder +
                      " holds adapters already; merge them first with `stablemask checkpoint "
                      "merge`, or set lora.rank to 0 to train all weights");
  }
  const SafetensorsFile& file = base ? base->model : source.model;
  std::map<std::string, at::Tensor> wanted = flat.named_weights();
  for (const nn::Parameter& parameter : nn::parameters(model)) {
    const bool is_new =
        parameter.role == nn::Role::kAdapter ||
        (parameter.role == nn::Role::kMask && !file.tensors().contains(parameter.name));
    if (is_new) wanted.erase(parameter.name);
  }
  require_finite_weights(source);
  const ModelConfig trained =
      parse_saved_config(source.config_json, source.folder + "/config.json").model;
  for_each_weight(
      wanted, source, base, trained,
      [&](const std::string& name, const at::Tensor& host) { flat.set_master(name, host); });
  if (model.lora.rank == 0) return std::nullopt;
  return BaseReference{source.folder, source.model_sha256};
}

namespace {

constexpr const char* kFp8Prefix = "fp8.";

/// Adds the tensors of fp8 products that `stored` has to `wanted`: those to restore, or, without
/// fp8 products, any of the same shape, which nobody reads.
void add_fp8(std::map<std::string, at::Tensor>& wanted, const nn::Fp8Products* fp8,
             const SafetensorsFile& stored) {
  std::map<std::string, at::Tensor> own;
  if (fp8) own = fp8->state();
  for (const auto& [name, view] : stored.tensors()) {
    if (!name.starts_with(kFp8Prefix)) continue;
    if (!fp8) wanted[name] = at::empty(view.shape);
    // All of them, if there is one.
    for (const auto& [key, tensor] : own) wanted[kFp8Prefix + key] = tensor;
  }
}

}  // namespace

std::map<std::string, at::Tensor> optimizer_state(const FlatParameters& flat,
                                                  const Optimizer& optimizer,
                                                  const nn::Fp8Products* fp8, dist::Group& group) {
  std::map<std::string, at::Tensor> state;
  for (const auto& [name, buffer] : optimizer.buffers()) {
    state.merge(flat.gather(buffer.values, name + ".", group, buffer.cover));
  }
  if (fp8 && group.rank() == 0) {
    for (const auto& [name, tensor] : fp8->state()) state[kFp8Prefix + name] = group.read(tensor);
  }
  return state;
}

std::map<std::string, at::Tensor> averaged_weights(const std::map<std::string, at::Tensor>& master,
                                                   const WeightAverage& average,
                                                   dist::Group& group) {
  std::map<std::string, at::Tensor> weights = average.gather(group);
  weights.insert(master.begin(), master.end());  // those that have no average
  return weights;
}

void restore_average(const FlatParameters& flat, WeightAverage& average,
                     const Checkpoint& checkpoint) {
  if (!checkpoint.averaged) return;
  for_each_tensor(saved_parameters(flat, !checkpoint.base_json.empty()), checkpoint.model,
                  checkpoint.model_path, [&](const std::string& name, const at::Tensor& host) {
                    if (flat.layout().find(name)) average.set(name, host);
                  });
}

void restore_optimizer(const FlatParameters& flat, Optimizer& optimizer, nn::Fp8Products* fp8,
                       const Checkpoint& checkpoint) {
  if (!checkpoint.optimizer) {
    throw CheckpointError(checkpoint.folder +
                          ": has weights but no optimizer state; finetune from it with "
                          "train.init_from instead of resuming");
  }
  std::map<std::string, Optimizer::Buffer> buffers = optimizer.buffers();
  std::map<std::string, at::Tensor> wanted;
  for (const auto& [name, buffer] : buffers) {
    wanted.merge(flat.views(flat.weights(), name + ".", buffer.cover));
  }
  add_fp8(wanted, fp8, *checkpoint.optimizer);
  const auto take = [&](const std::string& name, const at::Tensor& host) {
    if (name.starts_with(kFp8Prefix)) {
      if (fp8) wanted.at(name).copy_(host);
      return;
    }
    const size_t dot = name.find('.');
    Optimizer::Buffer& buffer = buffers.at(name.substr(0, dot));
    flat.set_local(buffer.values, name.substr(dot + 1), host, buffer.cover);
  };
  for_each_tensor(wanted, *checkpoint.optimizer, checkpoint.folder + "/optimizer.safetensors", take,
                  {ElementType::kF32, ElementType::kBf16});
  if (fp8) fp8->restored();
}

}  // namespace stablemask
