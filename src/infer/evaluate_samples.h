#pragma once

#include "stablemask/infer/evaluate.h"

namespace stablemask {

/// evaluate() of a shard of samples, packed for the window.
Perplexity evaluate_samples(nn::Transformer& model, const Shard& shard, const EvalOptions& options);

}  // namespace stablemask
