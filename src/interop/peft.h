#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/interop/families.h"
#include "stablemask/config/config.h"

/// Low-rank adapters as Hugging Face's library PEFT stores them: a folder with adapter_config.json
/// and adapter_model.safetensors.
namespace stablemask::interop {

/// Consecutive rows of an adapter's parameter that are a tensor of adapter_model.safetensors.
struct PeftTensor {
  std::string parameter;
  int64_t row = 0, rows = 0, columns = 0;
  std::string module;  ///< of the family: "model.layers.0.self_attn.k_proj"
  std::string factor;  ///< "lora_A" or "lora_B"
  std::string target;  ///< of lora.targets
  /// Name in the file: "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight".
  std::string name() const { return "base_model.model." + module + "." + factor + ".weight"; }
};

/// The adapters of `model`, whose class is `family`, in the order of their parameters. Leaves out
/// those of projections that the family stores in one tensor with others, for which PEFT has a
/// single pair of factors.
std::vector<PeftTensor> peft_tensors(const Family& family, const ModelConfig& model);

/// The first of lora.targets whose adapters peft_tensors leaves out; "": there is none.
std::string target_without_peft(const Family& family, const ModelConfig& model);

/// Text of adapter_config.json for these tensors.
std::string adapter_config_json(const LoraConfig& lora, const std::vector<PeftTensor>& tensors,
                                bool transposed);

/// The section lora of an adapter_config.json, without its targets. Refuses fields by which PEFT
/// computes something else, and unknown ones that are not in `ignored`.
LoraConfig read_adapter_config(FieldReader fields, const std::vector<std::string>& ignored);

}  // namespace stablemask::interop
