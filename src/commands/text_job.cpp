#include "src/commands/text_job.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/infer/continuation.h"
#include "stablemask/ops/memory.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kRemedy =
    "lower --max-tokens or shorten the prompt, lower --batch, or set --attention-window";

/// A text that is being drawn.
struct Running {
  Running(const Tokenizer& tokenizer, TextJob given)
      : job(std::move(given)),
        continuation(tokenizer, job.prompt.held, job.settings.stops),
        keeps_drawn(job.settings.logprobs >= 0) {
    result.prompt_tokens =
        static_cast<int64_t>(job.prompt.ids.size()) + (job.prompt.held.empty() ? 0 : 1);
    result.seed = job.settings.draw.seed;
  }

  bool show(const std::string& text) {
    result.text += text;
    return text.empty() || !job.text || job.text(text);
  }

  bool emit(const infer::DrawnToken& token) {
    ++result.tokens;
    if (job.token) job.token();
    if (keeps_drawn) result.drawn.push_back(token);
    return show(continuation.push(token.id)) && !continuation.stopped();
  }

  void finish(const infer::Outcome& outcome) {
    show(continuation.finish());
    result.finish_reason = outcome.finish == infer::Finish::kLength ? "length" : "stop";
    if (continuation.stopped()) result.finish_reason = "stop";
    if (outcome.finish == infer::Finish::kNonFinite) result.error = outcome.error;
    if (job.done) job.done(result);
  }

  TextJob job;
  infer::Continuation continuation;
  bool keeps_drawn;
  TextResult result;
};

/// Bytes of keys and values of a token.
int64_t cache_bytes(const LoadedModel& loaded) {
  const ModelConfig& model = loaded.config.model;
  const auto element = static_cast<int64_t>(loaded.model->head_weight().element_size());
  return 2 * model.layers * model.resolved_kv_heads() * model.resolved_head_dim() * element;
}

/// Bytes of memory that a program can still use; nullopt where the system does not say.
std::optional<int64_t> available_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string name; file >> name;) {
    int64_t kilobytes = 0;
    if (name == "MemAvailable:" && file >> kilobytes) return kilobytes * 1024;
    file.ignore(256, '\n');
  }
  return std::nullopt;
}

std::string gigabytes(int64_t bytes) { return format("%.3g GB", static_cast<double>(bytes) / 1e9); }

/// The sequences that the memory of a CPU holds, at most `batch`. A GPU's allocator says so itself.
int64_t batch_that_fits(const LoadedModel& loaded, const GeneratorNeed& need, int64_t batch) {
  if (!loaded.model->head_weight().device().is_cpu()) return batch;
  const int64_t window = loaded.config.model.window;
  const int64_t kept = window > 0 ? std::min(need.tokens, 2 * window + 64) : need.tokens;
  const int64_t each = kept * cache_bytes(loaded);
  const std::optional<int64_t> available = available_memory();
  if (!available || batch * each <= *available) return batch;
  if (need.batch == 0 && each <= *available) return std::max<int64_t>(1, *available / 2 / each);
  throw OutOfMemoryError(
      need.longest + " would take " + gigabytes(batch * each) + " for keys and values" +
      (batch > 1 ? format(", %lld at a time", static_cast<long long>(batch)) : "") + ", but " +
      gigabytes(*available) + " of memory are free; " + kRemedy);
}

Json logprobs_json(const std::vector<infer::DrawnToken>& drawn, const Tokenizer& tokenizer) {
  const auto entry = [&](int32_t id, float logprob) {
    return Json{
        {"id", id}, {"text", with_replacements(tokenizer.text_of(id))}, {"logprob", logprob}};
  };
  Json list = Json::array();
  for (const infer::DrawnToken& token : drawn) {
    Json one = entry(token.id, token.logprob);
    one["top"] = Json::array();
    for (const auto& [id, logprob] : token.top) one["top"].push_back(entry(id, logprob));
    list.push_back(std::move(one));
  }
  return list;
}

}  // namespace

void add_text(infer::Generator& generator, const Tokenizer& tokenizer, TextJob job) {
  const auto running = std::make_shared<Running>(tokenizer, std::move(job));
  const TextSettings& settings = running->job.settings;
  infer::GenerateRequest request;
  request.prompt = running->job.prompt.ids;
  request.first_ids = running->job.prompt.first_ids;
  request.settings = settings.draw;
  request.logprobs = settings.logprobs;
  request.stop_ids = {tokenizer.end_of_text_id()};
  if (settings.stop_at_line_end && tokenizer.lossless()) {
    request.stop_ids.push_back(tokenizer.eos_id());
  }
  request.emit = [running](const infer::DrawnToken& token) { return running->emit(token); };
  request.done = [running](const infer::Outcome& outcome) { running->finish(outcome); };
  generator.add(std::move(request));
}

std::string described_text(const std::string& prompt, int64_t tokens,
                           const TextSettings& settings) {
  return with_commas(prompt.size()) + " bytes (" + with_commas(static_cast<uint64_t>(tokens)) +
         " tokens) and max_tokens " + with_commas(static_cast<uint64_t>(settings.draw.max_tokens));
}

SizedGenerator make_generator(const LoadedModel& loaded, const GeneratorNeed& need) {
  constexpr int64_t kMostOnGpu = 64, kMostOnCpu = 8;  // beyond, a text gains little
  const bool cpu = loaded.model->head_weight().device().is_cpu();
  int64_t batch = need.batch > 0 ? need.batch : (cpu ? kMostOnCpu : kMostOnGpu);
  batch = batch_that_fits(loaded, need, std::min(batch, need.texts));
  while (true) {
    try {
      infer::GeneratorOptions options;
      options.max_batch = batch;
      options.capacity = need.tokens;
      options.vocab_size = loaded.tokenizer.vocab_size();
      return {
          ops::with_memory_hint(
              kRemedy, [&] { return std::make_unique<infer::Generator>(loaded.model, options); }),
          batch};
    } catch (const OutOfMemoryError&) {
      if (need.batch > 0 || batch == 1) throw;
      batch /= 2;
    }
  }
}

void add_result_fields(const TextResult& result, const Tokenizer& tokenizer, Json& json) {
  json["text"] = with_replacements(result.text);
  json["finish_reason"] = result.finish_reason;
  json["prompt_tokens"] = result.prompt_tokens;
  json["tokens"] = result.tokens;
  json["seed"] = result.seed;
  if (!result.drawn.empty()) json["logprobs"] = logprobs_json(result.drawn, tokenizer);
}

Json settings_json(const TextSettings& settings) {
  Config config;
  config.generate = settings.draw;
  Json json = Json::parse(dump_config(config))["generate"];
  json["stop"] = settings.stops;
  json["stop_at_line_end"] = settings.stop_at_line_end;
  json["logprobs"] = settings.logprobs < 0 ? Json(nullptr) : Json(settings.logprobs);
  return json;
}

}  // namespace stablemask::commands
