#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/generate_prompts.h"
#include "src/commands/json_file.h"
#include "src/commands/model_options.h"
#include "src/commands/model_report.h"
#include "src/commands/text_job.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/input_stream.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/utf8.h"
#include "stablemask/infer/load.h"
#include "stablemask/ops/memory.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  std::optional<std::string> prompt, prompt_ids, prompt_file, prompts, out;
  std::string json;
  std::optional<int64_t> max_tokens, top_k, seed;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::vector<std::string> stops;
  int64_t samples = 1, batch = 0, logprobs = -1;
  bool greedy = false, stop_at_line_end = false, raw = false, no_heal = false;
};

/// Reads "5 6 7", with spaces or commas between. Returns "" or what is wrong with it.
std::string read_ids(const std::string& text, std::vector<int32_t>& ids) {
  ids.clear();
  const std::string problem =
      "must be token ids with spaces or commas between them, such as \"5 6 7\"";
  for (const char* at = text.data(); at != text.data() + text.size();) {
    if (*at == ' ' || *at == ',') {
      ++at;
      continue;
    }
    int32_t id = 0;
    const auto [end, error] = std::from_chars(at, text.data() + text.size(), id);
    if (error != std::errc() || id < 0) return problem;
    ids.push_back(id);
    at = end;
  }
  return ids.empty() ? problem : "";
}

/// All of a file, or of standard input for "-"; one line end at its end is left out.
std::string read_prompt(const std::string& path) {
  constexpr size_t kMax = size_t{1} << 30;
  std::string text =
      InputStream(path, ExitCode::kData, path == "-" ? "" : "--prompt-file " + path).rest(kMax);
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

std::string prompt_text(const Options& options) {
  if (options.prompt_file) return read_prompt(*options.prompt_file);
  return *options.prompt == "-" ? read_prompt("-") : *options.prompt;
}

/// The text to continue. Ids are taken as they are, without a start before them.
infer::Prompt prompt_of(const Options& options, const Tokenizer& tokenizer, std::string& text) {
  if (!options.prompt_ids) {
    return infer::PromptEncoder(tokenizer, !options.no_heal).encode(text, "--prompt");
  }
  infer::Prompt prompt;
  read_ids(*options.prompt_ids, prompt.ids);
  text = tokenizer.decode(prompt.ids);
  return prompt;
}

/// Options that contradict each other.
void check(const Options& options) {
  const int texts =
      (options.prompt ? 1 : 0) + (options.prompt_ids ? 1 : 0) + (options.prompt_file ? 1 : 0);
  if (texts + (options.prompts ? 1 : 0) != 1) {
    throw ConfigError(
        "generate needs a text to continue: one of --prompt TEXT, --prompt - (standard "
        "input), --prompt-ids IDS, --prompt-file FILE and --prompts FILE.jsonl (see stablemask "
        "generate --help)");
  }
  const auto refuse = [](bool wrong, const char* message) {
    if (wrong) throw ConfigError(message);
  };
  if (options.prompts) {
    refuse(!options.out, "--prompts needs --out FILE.jsonl for the results; -: standard output");
    refuse(!options.json.empty(), "--json is for a single prompt: --prompts writes JSON to --out");
    refuse(options.raw, "--raw is for a single prompt: JSON is always UTF-8");
    return;
  }
  refuse(options.out.has_value(), "--out is for --prompts: a single prompt has --json FILE");
  refuse(options.logprobs >= 0 && options.json.empty(),
         "--logprobs needs --json FILE, or --prompts, for the figures");
}

/// The config's settings, with the flags in place of its values.
TextSettings settings(const Options& options, const Config& config) {
  TextSettings settings{config.generate, options.stops, options.stop_at_line_end, options.logprobs};
  GenerateConfig& draw = settings.draw;
  if (options.max_tokens) draw.max_tokens = *options.max_tokens;
  if (options.temperature) draw.temperature = *options.temperature;
  if (options.top_k) draw.top_k = *options.top_k;
  if (options.top_p) draw.top_p = *options.top_p;
  if (options.min_p) draw.min_p = *options.min_p;
  if (options.repetition_penalty) draw.repetition_penalty = *options.repetition_penalty;
  if (options.seed) draw.seed = *options.seed;
  if (options.greedy) draw.temperature = 0.0;
  return settings;
}

/// Prints the samples of a prompt one after the other: the text of the first that has not ended as
/// it is drawn, the others' when their turn comes.
class Printer {
 public:
  Printer(std::string prompt, const TextSettings& settings, int64_t samples, bool raw)
      : prompt_(std::move(prompt)), settings_(settings), samples_(samples), raw_(raw) {
    begin();
  }

  /// Whether standard output took it.
  bool add(size_t sample, const std::string& text) {
    if (sample == current_) {
      print(text);
    } else {
      samples_[sample].text += text;
    }
    return std::ferror(stdout) == 0;
  }

  void end(size_t sample) {
    samples_[sample].ended = true;
    while (current_ < samples_.size() && samples_[current_].ended) {
      std::fputc('\n', stdout);
      ++current_;
      begin();
    }
    std::fflush(stdout);
  }

  /// Ends the line of a text that was interrupted.
  void interrupt() const {
    if (current_ < samples_.size()) std::fputc('\n', stdout);
  }

 private:
  struct Sample {
    std::string text;  ///< that waits
    bool ended = false;
  };

  void begin() {
    if (current_ == samples_.size()) return;
    if (samples_.size() > 1) {
      std::printf("--- sample %zu of %zu, seed %lld\n", current_ + 1, samples_.size(),
                  static_cast<long long>(settings_.draw.seed) + static_cast<long long>(current_));
    }
    std::fwrite(prompt_.data(), 1, prompt_.size(), stdout);
    print(samples_[current_].text);
  }

  void print(const std::string& text) const {
    const std::string shown = raw_ ? text : with_replacements(text);
    std::fwrite(shown.data(), 1, shown.size(), stdout);
    std::fflush(stdout);
  }

  const std::string prompt_;
  const TextSettings& settings_;
  std::vector<Sample> samples_;
  size_t current_ = 0;
  const bool raw_;
};

/// Draws the samples of a single prompt; `printer` may be null.
std::vector<TextResult> draw(const LoadedModel& loaded, const infer::Prompt& prompt,
                             const TextSettings& settings, const SizedGenerator& sized,
                             size_t samples, Printer* printer) {
  // On a terminal the text itself shows the progress.
  WorkProgress progress("generating", "tok", printer == nullptr || ::isatty(STDOUT_FILENO) == 0);
  std::vector<TextResult> results(samples);
  int64_t tokens = 0;
  for (size_t i = 0; i < samples; ++i) {
    TextJob job{prompt, settings};
    job.settings.draw.seed += static_cast<int64_t>(i);
    job.token = [&] { progress.show(++tokens, settings.draw.max_tokens * results.size()); };
    if (printer != nullptr) {
      job.text = [printer, i](const std::string& text) { return printer->add(i, text); };
    }
    job.done = [&results, printer, i](const TextResult& result) {
      results[i] = result;
      if (printer != nullptr) printer->end(i);
    };
    add_text(*sized.generator, loaded.tokenizer, std::move(job));
  }
  ops::with_memory_hint("lower --max-tokens or shorten the prompt",
                        [&] { sized.generator->run(); });
  if (printer != nullptr && stop_signal() != 0) printer->interrupt();
  check_stop("generating text");
  for (const TextResult& result : results) {
    if (!result.error.empty()) throw NonFiniteError("--prompt: " + result.error);
  }
  return results;
}

std::string report(const LoadedModel& loaded, const std::string& prompt,
                   const TextSettings& settings, const std::vector<TextResult>& results) {
  Json json;
  json["checkpoint"] = loaded.folder;
  json["step"] = loaded.step;
  add_model_fields(loaded.config, json);
  json["settings"] = settings_json(settings);
  json["prompt"] = prompt;
  for (const TextResult& result : results) {
    Json sample;
    add_result_fields(result, loaded.tokenizer, sample);
    json["samples"].push_back(std::move(sample));
  }
  return json_text(json, 2) + "\n";
}

void generate_one(const Options& options, const LoadedModel& loaded,
                  const std::vector<std::string>& overrides, std::string text, OutputFile* json) {
  const TextSettings settings = commands::settings(options, loaded.config);
  const infer::Prompt prompt = prompt_of(options, loaded.tokenizer, text);
  const auto ids = static_cast<int64_t>(prompt.ids.size());
  GeneratorNeed need{options.batch, options.samples, ids + settings.draw.max_tokens,
                     "--prompt: " + described_text(text, ids, settings)};
  const SizedGenerator sized = make_generator(loaded, need);
  warn_long_text(loaded.config, overrides, need.tokens);
  std::unique_ptr<Printer> printer;
  if (json == nullptr || !json->is_standard_output()) {
    printer = std::make_unique<Printer>(text, settings, options.samples, options.raw);
  }
  const std::vector<TextResult> results =
      draw(loaded, prompt, settings, sized, static_cast<size_t>(options.samples), printer.get());
  if (json != nullptr) write_json(*json, report(loaded, text, settings, results));
}

void run(const Options& options) {
  check(options);
  const auto nothing = [](std::vector<std::string>&) {};
  const LoadOptions load = load_options(options.model, "generate", nothing);
  const std::string out = options.out.value_or(options.json);
  require_other_file(
      out, {options.prompts.value_or(""), options.prompt_file.value_or(""), options.model.config});
  const std::unique_ptr<OutputFile> json = open_json(options.json);
  std::string text;
  if (!options.prompts && !options.prompt_ids) text = prompt_text(options);
  if (!out.empty()) require_other_file(out, files_in(resolve_checkpoint(options.model.checkpoint)));
  const LoadedModel loaded = load_shown(options.model, load);
  if (loaded.model->head_weight().device().is_cpu()) use_few_threads(options.model.threads);
  if (!options.prompts) return generate_one(options, loaded, load.overrides, text, json.get());
  PromptsOptions many{*options.prompts, *options.out,     options.samples,
                      options.batch,    !options.no_heal, load.overrides};
  generate_prompts(loaded, settings(options, loaded.config), many);
}

void add_sampling_options(CLI::App& command, Options& options) {
  command.add_option("--max-tokens", options.max_tokens, "Number of tokens to generate")
      ->check(value_of_field("generate.max_tokens"));
  command
      .add_option("--temperature", options.temperature,
                  "Divides the logits; 0: the likeliest token")
      ->check(value_of_field("generate.temperature"));
  command.add_flag("--greedy", options.greedy, "Always the likeliest token: --temperature 0");
  command.add_option("--top-k", options.top_k, "Draw from the k likeliest tokens; 0: from all")
      ->check(value_of_field("generate.top_k"));
  command
      .add_option("--top-p", options.top_p,
                  "Draw from the fewest likeliest tokens with at least this probability, above 0")
      ->check(value_of_field("generate.top_p"));
  command
      .add_option(
          "--min-p", options.min_p,
          "Draw from the tokens with at least this share of the likeliest one's probability")
      ->check(value_of_field("generate.min_p"));
  command
      .add_option("--repetition-penalty", options.repetition_penalty,
                  "Above 1 makes tokens less likely that the text has already; 1: none")
      ->check(value_of_field("generate.repetition_penalty"));
  command
      .add_option("--seed", options.seed,
                  "Random seed; the same seed gives the same text on the same machine")
      ->check(value_of_field("generate.seed"));
  command
      .add_option("--stop", options.stops, "End before this text, which is not printed; repeatable")
      ->type_size(1)
      ->allow_extra_args(false)
      ->check(CLI::Validator(
          [](std::string& text) { return text.empty() ? std::string("must not be empty") : ""; },
          ""));
  command.add_flag("--stop-at-line-end", options.stop_at_line_end, "End at the first line end");
}

void add_many_options(CLI::App& command, Options& options) {
  command.add_option("--prompts", options.prompts,
                     "JSONL of many texts to continue, one object a line: \"prompt\", and if "
                     "wanted \"id\", \"stop\", \"seed\", \"max_tokens\", …; -: standard input");
  command.add_option("--out", options.out,
                     "With --prompts: the results as JSONL, in the order of the prompts; -: "
                     "standard output. An interrupted call goes on where it stopped");
  command
      .add_option("--n", options.samples,
                  "Texts for each prompt; text i, from 0, is that of seed + i")
      ->capture_default_str()
      ->check(number_from(1, 1 << 20));
  command
      .add_option("--batch", options.batch,
                  "Texts that are generated at a time; 0: chosen. It does not change them")
      ->check(number_from(0, 1 << 16));
  command
      .add_option("--logprobs", options.logprobs,
                  "JSON: also each token's log-probability and the K likeliest tokens'")
      ->type_name("K")
      ->check(number_from(0, 1000));
  command.add_option("--json", options.json,
                     "Also write the texts with their figures to this file; -: JSON instead of "
                     "the text on standard output");
}

}  // namespace

void add_generate(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("generate", "Continue texts with a checkpoint's model");
  add_model_options(command, options->model, "generate", "1");
  command.add_option("--prompt", options->prompt, "Text to continue; -: read standard input");
  command
      .add_option("--prompt-ids", options->prompt_ids,
                  "Token ids to continue instead of a text, such as \"1 5 6\"; nothing is put "
                  "before them")
      ->check(CLI::Validator(
          [](std::string& text) {
            std::vector<int32_t> ids;
            return read_ids(text, ids);
          },
          ""));
  command.add_option("--prompt-file", options->prompt_file,
                     "File with the text to continue; a line end at its end is left out");
  add_sampling_options(command, *options);
  add_many_options(command, *options);
  command.add_flag("--no-heal", options->no_heal,
                   "Keep the last token of a prompt as it is, also where it ends within a word");
  command.add_flag("--raw", options->raw,
                   "Print generated bytes that are not UTF-8 as they are, not as U+FFFD");
  command.footer(
      "Examples:\n"
      "  stablemask generate --checkpoint runs/quickstart/finetuned --prompt \" = Harn\" --top-p "
      "0.9\n"
      "  stablemask generate --checkpoint runs/quickstart/finetuned --prompts prompts.jsonl --out "
      "texts.jsonl\n"
      "--attention-window 256 lets each token see the last 256 ones only, for long texts. "
      "docs/inference.md has more.");
  command.callback([options] { run(*options); });
}

}  // namespace stablemask::commands
