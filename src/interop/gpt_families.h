#pragma once

#include <vector>

#include "src/interop/families.h"

namespace stablemask::interop {

/// GPT-NeoX (Pythia) and GPT-2: LayerNorm, biases in all projections, GELU.
std::vector<Family> gpt_families();

}  // namespace stablemask::interop
