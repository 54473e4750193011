#include "src/train/sampler.h"

#include <algorithm>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/infer/continuation.h"
#include "stablemask/ops/memory.h"

namespace stablemask {
Sampler::Sampler(nn::Transformer model, const Tokenizer& tokenizer, Options options,
                 std::shared_ptr<dist::Group> group)
    : model_(std::move(model)),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      group_(std::move(group)) {
  const infer::PromptEncoder encoder(tokenizer_);
  for (const std::string& prompt : options_.prompts) {
    prompts_.push_back(encoder.encode(prompt, "/train/sample_prompts: " + in_quotes(prompt)));
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
  if (prompts_.empty()) return;
  size_t longest = 0;
  for (const infer::Prompt& prompt : prompts_) longest = std::max(longest, prompt.ids.size());
  infer::GeneratorOptions generation;  // one text at a time: training needs the memory
  generation.capacity = static_cast<int64_t>(longest) + options_.generate.max_tokens;
  generation.vocab_size = tokenizer_.vocab_size();
  generation.cuda_graphs = false;  // a few short texts: recording would take longer, and memory
  infer::Generator generator(model_, generation);
  drawn_ = 0;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    add(generator, i, {step, static_cast<int64_t>(i) + 1, options_.prompts[i], ""}, samples);
  }
  generator.run();
}

/// Queues prompt `index`; its text completes `sample`, which then goes to `samples`.
void Sampler::add(infer::Generator& generator, size_t index, Sample sample,
                  std::vector<Sample>& samples) {
  const infer::Prompt& prompt = prompts_[index];
  const int64_t each = options_.generate.max_tokens;
  const auto begun = each * static_cast<int64_t>(index);
  const auto total = each * static_cast<int64_t>(prompts_.size());
  const auto text =
      std::make_shared<infer::Continuation>(tokenizer_, prompt.held, std::vector<std::string>{});
  const auto kept = std::make_shared<Sample>(std::move(sample));
  infer::GenerateRequest request;
  request.prompt = prompt.ids;
  request.first_ids = prompt.first_ids;
  request.settings = options_.generate;
  request.stop_ids = {tokenizer_.end_of_text_id()};
  request.emit = [=, this](const infer::DrawnToken& token) {
    kept->continuation += text->push(token.id);
    drawn_ = std::max(drawn_, begun) + 1;
    if (options_.progress) options_.progress(drawn_, total);
    return true;
  };
  request.done = [=, &samples](const infer::Outcome& outcome) {
    if (outcome.finish == infer::Finish::kNonFinite) {
      log_warning(format("step %lld: sample %lld is left out: a logit is not finite",
                         static_cast<long long>(kept->step), static_cast<long long>(kept->number)));
      return;
    }
    kept->continuation = with_replacements(kept->continuation + text->finish());
    samples.push_back(*kept);
  };
  generator.add(std::move(request));
}

}  // namespace stablemask
