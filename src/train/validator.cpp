#include "src/train/validator.h"

#include <utility>

#include "stablemask/base/stop.h"

namespace stablemask {

namespace {

double loss_of(const Perplexity& result) { return result.nll / static_cast<double>(result.tokens); }

}  // namespace

Validator::Validator(nn::Transformer model, std::shared_ptr<const Shard> shard,
                     const EvalOptions& options, int64_t part)
    : model_(std::move(model)),
      shard_(std::move(shard)),
      options_(options),
      part_(part < shard_->size() ? part : 0) {}

Perplexity Validator::score(int64_t tokens) {
  options_.tokens = tokens;
  Perplexity result = evaluate(model_, *shard_, options_);
  model_->train();
  return result;
}

int Validator::validate(RunState& state, bool last) {
  Perplexity result = score(part_);
  const double compared = loss_of(result);
  if (last && part_ > 0 && result.complete) result = score(0);
  if (!result.complete) return static_cast<int>(options_.group->agree(stop_signal()));
  compared_loss_ = compared;
  state.valid_loss = loss_of(result);
  state.valid_word_ppl = result.word();
  state.valid_tokens = static_cast<int64_t>(result.tokens);
  return 0;
}

}  // namespace stablemask
