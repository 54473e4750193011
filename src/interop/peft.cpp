#include "src/interop/peft.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "src/interop/tensor_map.h"
#include "stablemask/base/json_text.h"
#include "stablemask/nn/parameters.h"

namespace stablemask::interop {
namespace {

using Json = nlohmann::ordered_json;

/// The name of `tensor`, "….q_proj.weight", if the family has a tensor of its own for it; else "".
std::string own_tensor(const TensorMap& map, const std::vector<TensorRows>& rows) {
  if (rows.size() != 1 || map.by_tensor.at(rows[0].name).size() != 1) return "";
  return rows[0].name;
}

std::string target_of(const nn::Parameter& projection) {
  return projection.name.substr(projection.name.rfind('.') + 1);
}

/// Calls visit(projection, external tensor, its name in the family's files or "") for every tensor
/// of the projections that have adapters.
template <class Visit>
void for_each_adapted(const Family& family, const ModelConfig& model, const Visit& visit) {
  ModelConfig whole = model;
  whole.lora = {};
  const TensorMap map = tensor_map(family, whole);
  for (const nn::Parameter& parameter : map.parameters) {
    if (parameter.role != nn::Role::kProjection || !model.lora.adapts(target_of(parameter))) {
      continue;
    }
    for (const nn::ExternalTensor& tensor : parameter.external) {
      visit(parameter, tensor, own_tensor(map, family.place(whole, tensor)));
    }
  }
}

/// The last two parts of a module's name, "self_attn.q_proj", which PEFT compares with the end of
/// the names of all modules. GPT-2 has a c_proj in attention and feed-forward layer.
std::string module_ending(const std::string& module) {
  return module.substr(module.rfind('.', module.rfind('.') - 1) + 1);
}

}  // namespace

std::vector<PeftTensor> peft_tensors(const Family& family, const ModelConfig& model) {
  std::vector<PeftTensor> all;
  const int64_t rank = model.lora.rank;
  std::map<std::string, int64_t> next_a, next_b;  // rows of the projection's A and B so far
  for_each_adapted(family, model,
                   [&](const nn::Parameter& projection, const nn::ExternalTensor& tensor,
                       const std::string& name) {
                     PeftTensor a{projection.name + nn::kAdapterA,
                                  next_a[projection.name],
                                  rank,
                                  projection.shape[1],
                                  name.substr(0, name.rfind('.')),
                                  "lora_A",
                                  target_of(projection)};
                     PeftTensor b = a;
                     b.parameter = projection.name + nn::kAdapterB;
                     b.row = next_b[projection.name];
                     b.rows = tensor.rows;
                     b.columns = rank;
                     b.factor = "lora_B";
                     next_a[projection.name] += rank;
                     next_b[projection.name] += tensor.rows;
                     if (!name.empty()) all.insert(all.end(), {a, b});
                   });
  return all;
}

std::string target_without_peft(const Family& family, const ModelConfig& model) {
  std::string found;
  for_each_adapted(
      family, model,
      [&](const nn::Parameter& projection, const nn::ExternalTensor&, const std::string& name) {
        if (name.empty() && found.empty()) found = target_of(projection);
      });
  return found;
}

std::string adapter_config_json(const LoraConfig& lora, const std::vector<PeftTensor>& tensors,
                                bool transposed) {
  std::set<std::string> modules;
  for (const PeftTensor& tensor : tensors) modules.insert(module_ending(tensor.module));
  Json json;
  json["peft_type"] = "LORA";
  json["task_type"] = "CAUSAL_LM";
  json["base_model_name_or_path"] = nullptr;
  json["inference_mode"] = true;
  json["r"] = lora.rank;
  const bool integral = lora.alpha == std::floor(lora.alpha);
  json["lora_alpha"] = integral ? Json(static_cast<int64_t>(lora.alpha)) : Json(lora.alpha);
  json["lora_dropout"] = lora.dropout;
  json["target_modules"] = modules;
  json["bias"] = "none";
  json["fan_in_fan_out"] = transposed;
  constexpr int kIndent = 2;
  return json_text(json, kIndent) + "\n";
}

LoraConfig read_adapter_config(FieldReader fields, const std::vector<std::string>& ignored) {
  if (fields.text("peft_type", "LORA") != "LORA") {
    fields.refuse("peft_type", "only adapters of LoRA can be imported");
  }
  LoraConfig lora;
  lora.rank = fields.size("r");
  lora.alpha = fields.number("lora_alpha", 8);  // PEFT's default
  if (!(lora.alpha > 0)) fields.refuse("lora_alpha", "must be above 0");
  // Rank-stabilised LoRA scales by alpha / √r.
  if (fields.flag("use_rslora", false)) lora.alpha *= std::sqrt(static_cast<double>(lora.rank));
  lora.dropout = fields.number("lora_dropout", 0);
  if (fields.text("bias", "none") != "none") {
    fields.refuse("bias", "biases that were trained with the adapters cannot be imported");
  }
  const JsonValue* init = fields.value("init_lora_weights");
  if (init != nullptr && init->kind != JsonValue::Kind::kBool && init->text != "gaussian") {
    fields.refuse("init_lora_weights",
                  "may have changed the base model; only true, false and \"gaussian\" keep it");
  }
  for (const char* key : {"use_dora", "use_qalora", "lora_bias"}) {
    fields.require_flag(key, false, "computes another model than LoRA");
  }
  for (const char* key : {"rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication",
                          "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
                          "arrow_config"}) {
    fields.require_absent(key, "has no counterpart in this program");
  }
  // Which tensors there are says adapter_model.safetensors; the others do not change the result.
  fields.skip({"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
               "fan_in_fan_out", "task_type", "base_model_name_or_path", "inference_mode",
               "revision", "auto_mapping", "peft_version", "megatron_config", "megatron_core",
               "loftq_config", "eva_config", "corda_config", "qalora_group_size",
               "ensure_weight_tying"});
  fields.finish(ignored);
  return lora;
}

}  // namespace stablemask::interop
