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
  /// `options` name the group of the processes that evaluate together. `part`: the first tokens
  /// that a validation before the last step scores; 0: all.
  Validator(nn::Transformer model, std::shared_ptr<const Shard> shard, const EvalOptions& options,
            int64_t part);

  /// Enters loss, word perplexity (NaN for a part, whose words are not known) and tokens in
  /// `state`; those of all tokens if this is the `last` step. Returns the stop signal that ended
  /// the evaluation early in any process, `state` then being unchanged; 0: none. Throws as infer's
  /// evaluate.
  int validate(RunState& state, bool last);
  /// Of the last validation, on the part: comparable with the other ones of the run.
  double compared_loss() const { return compared_loss_; }

 private:
  Perplexity score(int64_t tokens);

  nn::Transformer model_;
  std::shared_ptr<const Shard> shard_;
  EvalOptions options_;
  int64_t part_;  ///< 0: all tokens
  double compared_loss_ = RunState::kNone;
};

}  // namespace stablemask
