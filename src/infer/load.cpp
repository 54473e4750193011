#include "stablemask/infer/load.h"

#include <torch/torch.h>

#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/infer/weights.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/memory.h"

namespace stablemask {
at::Device select_device(DeviceKind kind) {
  if (kind == DeviceKind::kCpu) return at::kCPU;
  const std::string problem = ops::cuda_problem();
  if (problem.empty()) return {at::kCUDA, 0};
  if (kind == DeviceKind::kAuto) return at::kCPU;
  throw ConfigError("device \"cuda\": " + problem + "; use device \"cpu\" or \"auto\"");
}

at::ScalarType select_dtype(DtypeKind kind, at::Device device) {
  if (kind == DtypeKind::kAuto) return device.is_cuda() ? at::kBFloat16 : at::kFloat;
  return kind == DtypeKind::kBf16 ? at::kBFloat16 : at::kFloat;
}

LoadedModel load_model(const std::string& path, DeviceKind device_kind, DtypeKind dtype_kind) {
  const at::Device device = select_device(device_kind);
  Checkpoint checkpoint = load_checkpoint(resolve_checkpoint(path));
  Config config = parse_config(checkpoint.config_json, checkpoint.folder + "/config.json");
  Tokenizer tokenizer = Tokenizer::from_bytes(std::move(checkpoint.tokenizer_model),
                                              checkpoint.folder + "/tokenizer.model");
  const auto build = [&] {
    nn::Transformer model(config.model);
    model->to(device);
    std::map<std::string, at::Tensor> weights;
    for (auto& item : model->named_parameters()) {
      item.value().set_data(item.value().to(select_dtype(dtype_kind, device)));
      weights[item.key()] = item.value();
    }
    copy_tensors(weights, checkpoint.model, checkpoint.folder + "/model.safetensors");
    model->weights_are_set();
    model->eval();
    return model;
  };
  nn::Transformer model = ops::with_memory_hint("the model does not fit into this device", build);
  return {std::move(config), std::move(model), std::move(tokenizer), checkpoint.folder,
          checkpoint.step};
}

}  // namespace stablemask
