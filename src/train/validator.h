#pragma once

#include <memory>

#include "src/train/run_state.h"
#include "stablemask/data/shards.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/nn/model.h"

namespace stablemask {

/// Evaluates a model that is being trained on the validation shard.
class Validator {
 public:
  /// `options` name the group of the processes that evaluate together.
  Validator(nn::Transformer model, std::shared_ptr<const Shard> shard, const EvalOptions& options);

  /// Enters loss and word perplexity in `state`. Returns the stop signal that ended the evaluation
  /// early in any process, `state` then being unchanged; 0: none. Throws as infer's evaluate.
  int validate(RunState& state);

 private:
  nn::Transformer model_;
  std::shared_ptr<const Shard> shard_;
  EvalOptions options_;
};

}  // namespace stablemask
