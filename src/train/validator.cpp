#include "src/train/validator.h"

#include <ATen/ATen.h>

#include <utility>

#include "stablemask/base/stop.h"

namespace stablemask {

Validator::Validator(nn::Transformer model, std::shared_ptr<const Shard> shard,
                     const EvalOptions& options, std::shared_ptr<dist::Group> group)
    : model_(std::move(model)),
      shard_(std::move(shard)),
      options_(options),
      group_(std::move(group)) {}

int Validator::validate(RunState& state) {
  // Process 0 evaluates the whole shard; the sums add nothing from the others.
  Perplexity result;
  if (group_->rank() == 0) {
    result = evaluate(model_, *shard_, options_);
    model_->train();
  }
  const int64_t signal = group_->agree(result.complete ? 0 : stop_signal());
  if (signal != 0) return static_cast<int>(signal);
  const at::Tensor sums = at::zeros({4}, at::TensorOptions(at::kDouble));
  double* const values = sums.mutable_data_ptr<double>();
  values[0] = result.nll;
  values[1] = static_cast<double>(result.tokens);
  values[2] = static_cast<double>(result.words);
  values[3] = static_cast<double>(result.lines);
  const at::Tensor shared = sums.to(model_->head_weight().device());
  group_->all_reduce(shared, dist::Reduce::kSum);
  const at::Tensor host = shared.to(at::kCPU);
  const double* const total = host.const_data_ptr<double>();
  result.nll = total[0];
  result.tokens = static_cast<uint64_t>(total[1]);
  result.words = static_cast<uint64_t>(total[2]);
  result.lines = static_cast<uint64_t>(total[3]);
  state.valid_loss = result.nll / static_cast<double>(result.tokens);
  state.valid_word_ppl = result.word();
  return 0;
}

}  // namespace stablemask
