#include "stablemask/infer/load.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/infer/adapters.h"
#include "stablemask/infer/weights.h"
#include "stablemask/io/base_checkpoint.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/io/finite.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/memory.h"

namespace stablemask {
namespace {

/// Fields whose value is a weight of the model when the mask is learnable.
constexpr std::array<std::string_view, 4> kMaskWeights = {
    "model.stable_mask", "model.stable_mask.enabled", "model.stable_mask.gamma",
    "model.stable_mask.p_base"};

bool may_change(const std::string& field) {
  const std::vector<std::string>& allowed = inference_fields();
  return std::any_of(allowed.begin(), allowed.end(), [&](const std::string& name) {
    const std::string_view section = std::string_view(name).substr(0, name.size() - 1);
    return name == field || (name.ends_with(".*") && field.starts_with(section));
  });
}

/// Throws ConfigError for an override that asks for other weights than the checkpoint has. Run
/// after parse_config, which refuses what is not a field at all.
void require_allowed(const std::vector<std::string>& overrides, const Config& saved) {
  const StableMaskConfig& mask = saved.model.stable_mask;
  const bool learned = mask.enabled && mask.learnable;
  for (const std::string& assignment : overrides) {
    const std::string field = assignment.substr(0, assignment.find('='));
    if (!may_change(field)) {
      throw ConfigError("--set " + field +
                        ": belongs to the checkpoint's weights or to training; fields that can be "
                        "set here: " +
                        join(inference_fields(), ", "));
    }
    if (learned && std::ranges::find(kMaskWeights, field) != kMaskWeights.end()) {
      throw ConfigError("--set " + field +
                        ": was learned by this model (model.stable_mask.learnable), so its value "
                        "comes from the checkpoint's weights");
    }
  }
}

/// `overrides` with the other options' fields in place of theirs.
std::vector<std::string> all_overrides(const LoadOptions& options) {
  std::vector<std::string> all = options.overrides;
  const auto replace = [&](const std::string& field, const std::string& value) {
    std::erase_if(all, [&](const std::string& text) { return text.starts_with(field + "="); });
    if (!value.empty()) all.push_back(field + "=" + value);
  };
  if (!options.mask_length.empty()) {
    const bool trained = options.mask_length == "trained";
    replace("model.stable_mask.mask_length", trained ? "" : options.mask_length);
  }
  if (options.attention_window) {
    replace("model.window", std::to_string(*options.attention_window));
  }
  return all;
}

/// The defaults of a mask that is turned on here, whose fields the training run did not use.
constexpr std::array<const char*, 5> kNewMask = {
    "model.stable_mask.gamma=auto", "model.stable_mask.p_base=0",
    "model.stable_mask.mask_length=context", "model.stable_mask.beyond=infinite",
    "model.stable_mask.learnable=false"};

Config inference_config(const Checkpoint& checkpoint, const LoadOptions& options) {
  const std::string name = checkpoint.folder + "/config.json";
  Config config = parse_saved_config(checkpoint.config_json, name);
  if (const std::vector<std::string> overrides = all_overrides(options); !overrides.empty()) {
    const Config saved = std::move(config);
    std::vector<std::string> all = overrides;
    if (!saved.model.stable_mask.enabled) all.insert(all.begin(), kNewMask.begin(), kNewMask.end());
    config = parse_saved_config(checkpoint.config_json, name, all);
    require_allowed(overrides, saved);
  }
  if (!options.mask_length.empty() && !config.model.stable_mask.enabled) {
    throw ConfigError("--mask-length " + options.mask_length + ": the model of " +
                      checkpoint.folder +
                      " has no StableMask; turn it on with --set model.stable_mask=true, or leave "
                      "--mask-length out");
  }
  return config;
}

Tokenizer checkpoint_tokenizer(Checkpoint& checkpoint) {
  const std::string path =
      checkpoint.folder + "/" + tokenizer_file_name(checkpoint.tokenizer_model);
  if (checkpoint.tokenizer_model.empty()) {
    throw CheckpointError(path + ": is missing; save the checkpoint with its tokenizer");
  }
  return Tokenizer::from_bytes(std::move(checkpoint.tokenizer_model), path,
                               std::move(checkpoint.tokenizer_companions));
}

/// The model on `device` with the checkpoint's weights rounded to `dtype`.
nn::Transformer build_model(const ModelConfig& config, const Checkpoint& checkpoint,
                            const std::optional<Checkpoint>& base, at::Device device,
                            at::ScalarType dtype) {
  ModelConfig whole = config;
  whole.lora = {};
  nn::Transformer model(whole);
  std::map<std::string, at::Tensor> weights;
  // One parameter after the other, so that the fp32 model is never copied as a whole.
  for (auto& item : model->named_parameters()) {
    item.value().set_data(at::empty(item.value().sizes(), at::TensorOptions(dtype).device(device)));
    weights[item.key()] = item.value();
  }
  for_each_weight(weights, checkpoint, base, config,
                  [&](const std::string& name, const at::Tensor& host) {
                    copy_rounded(host, weights.at(name));
                  });
  model->weights_are_set();
  model->to(device);  // buffers; the parameters are there already
  model->eval();
  return model;
}

}  // namespace

const std::vector<std::string>& inference_fields() {
  static const std::vector<std::string> fields = {"model.attention",
                                                  "model.window",
                                                  "model.rope_theta",
                                                  "model.rope_scaling",
                                                  "model.log_length_scale",
                                                  "model.stable_mask",
                                                  "model.stable_mask.enabled",
                                                  "model.stable_mask.gamma",
                                                  "model.stable_mask.p_base",
                                                  "model.stable_mask.mask_length",
                                                  "model.stable_mask.beyond",
                                                  "data.document_mask",
                                                  "eval.*",
                                                  "generate.*"};
  return fields;
}

at::Device select_device(DeviceKind kind, int64_t local_rank) {
  if (kind == DeviceKind::kCpu) return at::kCPU;
  const int64_t gpus = ops::gpu_count();
  if (gpus > 1 && local_rank >= gpus) {
    throw ConfigError(
        format("process %lld of this machine (counted from 0) has no GPU: %lld are visible; start "
               "one process for each GPU, or use device \"cpu\"",
               static_cast<long long>(local_rank), static_cast<long long>(gpus)));
  }
  const at::Device gpu(at::kCUDA, static_cast<at::DeviceIndex>(gpus > 1 ? local_rank : 0));
  if (gpus > 0) ops::use_device(gpu);  // before the check, which needs memory on the current GPU
  const std::string problem = ops::cuda_problem();
  if (problem.empty()) return gpu;
  if (kind == DeviceKind::kAuto) return at::kCPU;
  throw ConfigError("device \"cuda\": " + problem + "; use device \"cpu\" or \"auto\"");
}

at::ScalarType select_dtype(DtypeKind kind, at::Device device) {
  if (kind == DtypeKind::kAuto) return device.is_cuda() ? at::kBFloat16 : at::kFloat;
  return kind == DtypeKind::kBf16 ? at::kBFloat16 : at::kFloat;
}

LoadedModel load_model(const std::string& path, const LoadOptions& options) {
  const at::Device device = select_device(options.device, options.local_rank);
  std::optional<Checkpoint> loaded;
  with_checkpoint(path, [&](const std::string& folder) {
    loaded = load_checkpoint(folder, parts_with(options.weights), options.progress);
  });
  Checkpoint& checkpoint = *loaded;
  Config config = inference_config(checkpoint, options);
  require_finite_weights(checkpoint);
  Tokenizer tokenizer = checkpoint_tokenizer(checkpoint);
  if (config.model.vocab_size < tokenizer.vocab_size()) {
    throw CheckpointError(
        format("%s: the model has %lld token ids, its tokenizer %d", checkpoint.folder.c_str(),
               static_cast<long long>(config.model.vocab_size), tokenizer.vocab_size()));
  }
  const std::optional<Checkpoint> base = load_base(checkpoint, options.progress);
  nn::Transformer model = ops::with_memory_hint(
      "the model does not fit into the device's memory; load it on another device, or in bf16, "
      "which takes half of fp32's memory",
      [&] {
        return build_model(config.model, checkpoint, base, device,
                           select_dtype(options.dtype, device));
      });
  config.model.lora = {};  // merged
  return {std::move(config), std::move(model), std::move(tokenizer), checkpoint.folder,
          checkpoint.step};
}

}  // namespace stablemask
