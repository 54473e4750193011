#include "src/commands/generate_prompts.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "src/commands/model_report.h"
#include "src/commands/prompt_file.h"
#include "src/commands/result_file.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/infer/generate.h"
#include "stablemask/ops/memory.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

/// "model.stable_mask.gamma" for "/stable_mask/gamma".
std::string field_name(std::string pointer) {
  std::ranges::replace(pointer, '/', '.');
  return "model" + pointer;
}

/// Everything but the prompts that decides the texts.
RunFacts facts_of(const LoadedModel& loaded, const TextSettings& settings,
                  const PromptsOptions& options) {
  const at::Tensor& weight = loaded.model->head_weight();
  RunFacts facts = {{"a checkpoint whose manifest has the SHA-256",
                     sha256_file(loaded.folder + "/manifest.json")},
                    {"--device", weight.device().is_cpu() ? "cpu" : "cuda"},
                    {"the compute type", c10::toString(weight.scalar_type())},
                    {"--n", std::to_string(options.samples)},
                    {"token healing", options.heal ? "on" : "off"}};
  const Json model = Json::parse(dump_config(loaded.config))["model"].flatten();
  for (const auto& [pointer, value] : model.items()) {
    facts.emplace_back(field_name(pointer), json_text(value));
  }
  const Json drawing = settings_json(settings);
  for (const auto& [name, value] : drawing.items()) {
    facts.emplace_back(name, json_text(value));
  }
  return facts;
}

/// One call. A text has the number line * samples + sample, from 0.
class PromptsRun {
 public:
  PromptsRun(const LoadedModel& loaded, const TextSettings& settings, const PromptsOptions& options)
      : loaded_(loaded),
        options_(options),
        encoder_(loaded.tokenizer, options.heal),
        input_(options.prompts == "-" ? "standard input" : options.prompts),
        lines_(read_prompt_file(options.prompts, settings)),
        results_(options.out, facts_of(loaded, settings, options), inputs()) {}

  void run() {
    const size_t total = lines_.size() * samples();
    const size_t before = results_.complete();
    if (before > 0) {
      log_info(format("stablemask: %s: %zu of %zu texts are there; going on",
                      results_.partial().c_str(), before, total));
    }
    if (before < total) generate(before, total);
    results_.commit();
    if (results_.is_standard_output()) return;
    std::printf("%s: %s texts, %s tokens drawn\n", options_.out.c_str(), with_commas(total).c_str(),
                with_commas(static_cast<uint64_t>(tokens_)).c_str());
  }

 private:
  size_t samples() const { return static_cast<size_t>(options_.samples); }

  std::string name_of(const PromptLine& line) const {
    return format("%s: line %lld", input_.c_str(), static_cast<long long>(line.number));
  }

  std::vector<ResultInput> inputs() const {
    std::vector<ResultInput> inputs;
    for (const PromptLine& line : lines_) {
      inputs.insert(inputs.end(), samples(), {line.hash, name_of(line)});
    }
    return inputs;
  }

  /// What the longest text from number `first` on needs.
  GeneratorNeed need(size_t first, size_t total) const {
    GeneratorNeed need;
    need.batch = options_.batch;
    need.texts = static_cast<int64_t>(total - first);
    for (size_t i = first / samples(); i < lines_.size(); ++i) {
      const PromptLine& line = lines_[i];
      const auto prompt = static_cast<int64_t>(
          line.ids.empty() ? prompt_ids(loaded_.tokenizer, line.prompt, name_of(line)).size()
                           : line.ids.size());
      const int64_t tokens = prompt + line.settings.draw.max_tokens;
      if (tokens <= need.tokens) continue;
      need.tokens = tokens;
      need.longest = name_of(line) + ": " + described_text(line.prompt, prompt, line.settings);
    }
    return need;
  }

  void generate(size_t first, size_t total) {
    const GeneratorNeed need = this->need(first, total);
    const SizedGenerator sized = make_generator(loaded_, need);
    warn_long_text(loaded_.config, options_.overrides, need.tokens);
    // A text that takes long holds back the results of later ones, which wait in memory.
    const size_t most_ahead = std::max<size_t>(1024, 64 * static_cast<size_t>(sized.batch));
    WorkProgress progress("generating", "texts");
    next_ = first;
    while (results_.complete() < total) {
      while (next_ < total && next_ - results_.complete() < most_ahead &&
             running_ < 2 * sized.batch && failed_.empty()) {
        add(*sized.generator, next_++);
      }
      ops::with_memory_hint("lower --max-tokens or --batch, or shorten the prompts",
                            [&] { return sized.generator->step(); });
      write_ready();
      progress.show(static_cast<int64_t>(results_.complete()), static_cast<int64_t>(total));
      if (stop_signal() != 0) stop(total);
      if (std::ferror(stdout) != 0 && results_.is_standard_output()) return;  // main reports it
    }
  }

  void add(infer::Generator& generator, size_t number) {
    const PromptLine& line = lines_[number / samples()];
    TextJob job;
    job.prompt =
        line.ids.empty() ? encoder_.encode(line.prompt, name_of(line)) : infer::Prompt{line.ids};
    job.settings = line.settings;
    job.settings.draw.seed += static_cast<int64_t>(number % samples());
    job.done = [this, number](const TextResult& result) { take(number, result); };
    ++running_;
    add_text(generator, loaded_.tokenizer, std::move(job));
  }

  void take(size_t number, const TextResult& result) {
    --running_;
    tokens_ += result.tokens;
    const PromptLine& line = lines_[number / samples()];
    if (!result.error.empty()) {
      failed_[number] = name_of(line) + ": " + result.error;
      return;
    }
    Json json;
    json["id"] = line.id;
    if (samples() > 1) json["sample"] = number % samples();
    add_result_fields(result, loaded_.tokenizer, json);
    ready_[number] = json_text(json);
  }

  void write_ready() {
    while (!ready_.empty() && ready_.begin()->first == results_.complete()) {
      results_.write(ready_.begin()->second);
      ready_.erase(ready_.begin());
    }
    if (!failed_.empty() && failed_.begin()->first == results_.complete()) {
      throw NonFiniteError(failed_.begin()->second);
    }
  }

  [[noreturn]] void stop(size_t total) const {
    std::string doing =
        format("generating; %zu of %zu texts are written", results_.complete(), total);
    if (!results_.partial().empty()) {
      doing += " to " + results_.partial() + "; the same command goes on from there";
    }
    throw Stopped(stop_signal(), doing);
  }

  const LoadedModel& loaded_;
  const PromptsOptions& options_;
  const infer::PromptEncoder encoder_;
  const std::string input_;
  const std::vector<PromptLine> lines_;
  ResultFile results_;
  size_t next_ = 0;                      // number of the text that is added next
  int64_t running_ = 0;                  // added and not done
  int64_t tokens_ = 0;                   // drawn by this call
  std::map<size_t, std::string> ready_;  // results that wait for those before them
  std::map<size_t, std::string> failed_;
};

}  // namespace

void generate_prompts(const LoadedModel& loaded, const TextSettings& settings,
                      const PromptsOptions& options) {
  PromptsRun(loaded, settings, options).run();
}

}  // namespace stablemask::commands
