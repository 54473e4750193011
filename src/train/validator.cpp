#include "src/train/validator.h"

#include <utility>

#include "stablemask/base/stop.h"

namespace stablemask {

Validator::Validator(nn::Transformer model, std::shared_ptr<const Shard> shard,
                     const EvalOptions& options)
    : model_(std::move(model)), shard_(std::move(shard)), options_(options) {}

int Validator::validate(RunState& state) {
  const Perplexity result = evaluate(model_, *shard_, options_);
  model_->train();
  if (!result.complete) return static_cast<int>(options_.group->agree(stop_signal()));
  state.valid_loss = result.nll / static_cast<double>(result.tokens);
  state.valid_word_ppl = result.word();
  return 0;
}

}  // namespace stablemask
