#pragma once

#include "stablemask/infer/evaluate.h"

namespace stablemask {

/// Control over CUDA graphs in evaluate(), for tests.
struct GraphUse {
  bool allowed = true;  ///< in: false: no batch is recorded
  bool used = false;    ///< out: whether a recorded graph ran
};

/// evaluate() of the public header with control over CUDA graphs; the result does not depend on it.
Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options,
                    GraphUse& graph);

}  // namespace stablemask
