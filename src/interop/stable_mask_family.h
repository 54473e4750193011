#pragma once

#include "src/interop/families.h"

namespace stablemask::interop {

/// StableMaskForCausalLM, which expresses every model. Its config.json has in "stablemask" the
/// config's version and section "model" with every field, beside the names that transformers uses
/// for sizes. Tensors have Llama's names.
Family stable_mask_family();

}  // namespace stablemask::interop
