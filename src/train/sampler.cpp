#include "src/train/sampler.h"

#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/infer/generate.h"
#include "stablemask/ops/memory.h"

namespace stablemask {
Sampler::Sampler(nn::Transformer model, const Tokenizer& tokenizer, Options options,
                 std::shared_ptr<dist::Group> group)
    : model_(std::move(model)),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      group_(std::move(group)) {
  for (const std::string& prompt : options_.prompts) {
    prompt_ids_.push_back(
        stablemask::prompt_ids(tokenizer_, prompt, "/train/sample_prompts: " + in_quotes(prompt)));
  }
}

int Sampler::sample(int64_t step, std::vector<Sample>& samples) {
  if (group_->rank() == 0) {
    ops::with_memory_hint("lower generate.max_tokens or remove train.sample_prompts",
                          [&] { sample_all(step, samples); });
    model_->train();
  }
  const int64_t signal = group_->agree(stop_signal());
  if (signal != 0) samples.clear();
  return static_cast<int>(signal);
}

void Sampler::sample_all(int64_t step, std::vector<Sample>& samples) {
  const int64_t each = options_.generate.max_tokens;
  const int64_t total = each * static_cast<int64_t>(prompt_ids_.size());
  GenerateOptions generation;
  generation.vocab_size = tokenizer_.vocab_size();
  for (size_t i = 0; i < prompt_ids_.size() && stop_signal() == 0; ++i) {
    int64_t drawn = each * static_cast<int64_t>(i);
    generation.emit = [&](int32_t) {
      if (options_.progress) options_.progress(++drawn, total);
      return true;
    };
    try {
      const std::vector<int32_t> ids =
          generate(model_, prompt_ids_[i], options_.generate, generation);
      samples.push_back({step, static_cast<int64_t>(i) + 1, options_.prompts[i],
                         with_replacements(tokenizer_.decode(ids))});
    } catch (const NonFiniteError&) {
      log_warning(format("step %lld: sample %zu is left out: a logit is not finite",
                         static_cast<long long>(step), i + 1));
    }
  }
}

}  // namespace stablemask
