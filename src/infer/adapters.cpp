#include "stablemask/infer/adapters.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "stablemask/base/error.h"
#include "stablemask/infer/weights.h"
#include "stablemask/io/base_checkpoint.h"
#include "stablemask/io/finite.h"
#include "stablemask/nn/parameters.h"

namespace stablemask {
namespace {

/// Shapes of the adapters of `model`.
std::map<std::string, at::Tensor> adapter_shapes(const ModelConfig& model) {
  std::map<std::string, at::Tensor> shapes;
  for (const nn::Parameter& parameter : nn::parameters(model)) {
    if (parameter.role != nn::Role::kAdapter) continue;
    shapes[parameter.name] = at::empty(parameter.shape, at::TensorOptions().device(at::kMeta));
  }
  return shapes;
}

/// weight [out, in] += scale · B_j · A_j in the rows of each external tensor j.
void merge(const at::Tensor& weight, const nn::Parameter& declared, const at::Tensor& a,
           const at::Tensor& b, double scale) {
  const int64_t rank = b.size(1);
  int64_t row = 0, low = 0;
  for (const nn::ExternalTensor& tensor : declared.external) {
    weight.narrow(0, row, tensor.rows)
        .addmm_(b.narrow(0, row, tensor.rows), a.narrow(0, low, rank), 1.0, scale);
    row += tensor.rows;
    low += rank;
  }
}

}  // namespace

void for_each_weight(const std::map<std::string, at::Tensor>& wanted, const Checkpoint& checkpoint,
                     const std::optional<Checkpoint>& base, const ModelConfig& model,
                     const std::function<void(const std::string&, const at::Tensor&)>& take) {
  const std::string& file = checkpoint.model_path;
  if (!base) return for_each_tensor(wanted, checkpoint.model, file, take);
  std::map<std::string, at::Tensor> factors;
  for_each_tensor(adapter_shapes(model), checkpoint.model, file,
                  [&](const std::string& name, const at::Tensor& host) { factors[name] = host; });
  std::map<std::string, nn::Parameter> declared;
  for (const nn::Parameter& parameter : nn::parameters(model)) declared[parameter.name] = parameter;
  const double scale = model.lora.alpha / static_cast<double>(model.lora.rank);
  const auto merged = [&](const std::string& name, const at::Tensor& host) {
    const auto a = factors.find(name + nn::kAdapterA);
    if (a != factors.end()) {
      merge(host, declared.at(name), a->second, factors.at(name + nn::kAdapterB), scale);
    }
    take(name, host);
  };
  for_each_tensor(wanted, base->model, base->model_path, merged);
}

void merge_checkpoint(const std::string& from, const std::string& to, WeightKind weights,
                      const HashProgress& progress) {
  Checkpoint checkpoint = load_checkpoint(from, parts_with(weights), progress);
  const std::optional<Checkpoint> base = load_base(checkpoint, progress);
  if (!base) throw CheckpointError(from + ": holds a whole model, no adapters to merge");
  require_finite_weights(checkpoint);
  Config config = parse_saved_config(checkpoint.config_json, from + "/config.json");
  const ModelConfig trained = config.model;
  config.model.lora = {};
  std::map<std::string, at::Tensor> wanted, merged;
  for (const nn::Parameter& parameter : nn::parameters(config.model)) {
    wanted[parameter.name] = at::empty(parameter.shape, at::TensorOptions().device(at::kMeta));
  }
  CheckpointContent content;
  for_each_weight(
      wanted, checkpoint, base, trained, [&](const std::string& name, const at::Tensor& host) {
        merged[name] = host;
        content.model[name] = {ElementType::kF32, host.sizes().vec(), host.const_data_ptr()};
      });
  content.step = checkpoint.step;
  content.averaged = checkpoint.averaged;
  content.state_json = std::move(checkpoint.state_json);
  content.config_json = dump_config(config);
  content.tokenizer_model = std::move(checkpoint.tokenizer_model);
  content.tokenizer_companions = std::move(checkpoint.tokenizer_companions);
  write_checkpoint(to, content);
}

}  // namespace stablemask
