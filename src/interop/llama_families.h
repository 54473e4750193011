#pragma once

#include <vector>

#include "src/interop/families.h"

namespace stablemask::interop {

/// Families whose tensors have Llama's names and whose config.json has Llama's fields: Llama,
/// Mistral, Qwen2, Qwen3.
std::vector<Family> llama_families();

/// The rows of a tensor with Llama's own name.
std::vector<TensorRows> place_as_llama(const ModelConfig& model, const nn::ExternalTensor& tensor);

}  // namespace stablemask::interop
