#pragma once

#include "stablemask/infer/evaluate.h"

namespace stablemask {

/// What evaluate() leaves to its tests.
struct GraphUse {
  bool allowed = true;  ///< false: a GPU, too, runs every batch plainly
  bool used = false;    ///< set: whether a recorded graph ran
};

/// The public evaluate() with a say in how a GPU runs it; the result does not depend on it.
Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options,
                    GraphUse& graph);

}  // namespace stablemask
