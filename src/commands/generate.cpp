#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/model_options.h"
#include "src/commands/model_report.h"
#include "stablemask/base/error.h"
#include "stablemask/base/input_stream.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/utf8.h"
#include "stablemask/infer/generate.h"
#include "stablemask/infer/load.h"
#include "stablemask/ops/memory.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

struct Options {
  ModelOptions model;
  std::optional<std::string> prompt, prompt_file;
  std::optional<int64_t> max_tokens, top_k, seed;
  std::optional<double> temperature, top_p;
  bool greedy = false, stop_at_eos = false, raw = false;
};

/// Prints text as its tokens are drawn.
class TextPrinter {
 public:
  TextPrinter(const Tokenizer& tokenizer, bool raw) : decoder_(tokenizer), raw_(raw) {}

  void add(int32_t id) { print(decoder_.push(id)); }
  void finish() { print(decoder_.finish()); }

 private:
  void print(const std::string& text) {
    if (text.empty()) return;
    const std::string shown = raw_ ? text : with_replacements(text);
    std::fwrite(shown.data(), 1, shown.size(), stdout);
    std::fflush(stdout);
  }

  StreamDecoder decoder_;
  bool raw_;
};

/// All of a file, or of standard input for "-"; one line end at its end is left out.
std::string read_prompt(const std::string& path) {
  constexpr size_t kMax = size_t{1} << 30;
  std::string text =
      InputStream(path, ExitCode::kData, path == "-" ? "" : "--prompt-file " + path).rest(kMax);
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

std::string prompt_text(const Options& options) {
  if (options.prompt.has_value() == options.prompt_file.has_value()) {
    throw ConfigError(
        "generate needs a text to continue: one of --prompt TEXT, --prompt - (standard "
        "input) and --prompt-file FILE (see stablemask generate --help)");
  }
  if (options.prompt_file) return read_prompt(*options.prompt_file);
  return *options.prompt == "-" ? read_prompt("-") : *options.prompt;
}

/// The config's settings, with the flags in place of its values.
GenerateConfig settings(const Options& options, const Config& config) {
  GenerateConfig settings = config.generate;
  if (options.max_tokens) settings.max_tokens = *options.max_tokens;
  if (options.temperature) settings.temperature = *options.temperature;
  if (options.top_k) settings.top_k = *options.top_k;
  if (options.top_p) settings.top_p = *options.top_p;
  if (options.seed) settings.seed = *options.seed;
  if (options.greedy) settings.temperature = 0.0;
  return settings;
}

void run(const Options& options) {
  const auto nothing = [](std::vector<std::string>&) {};
  const LoadOptions load = load_options(options.model, "generate", nothing);
  const std::string text = prompt_text(options);
  LoadedModel loaded = load_shown(options.model, load);
  const GenerateConfig config = settings(options, loaded.config);
  const std::vector<int32_t> prompt = prompt_ids(loaded.tokenizer, text, "--prompt");
  warn_rows_without_mass(loaded.config.model, load.overrides,
                         static_cast<int64_t>(prompt.size()) + config.max_tokens);

  std::fwrite(text.data(), 1, text.size(), stdout);
  TextPrinter printer(loaded.tokenizer, options.raw);
  // On a terminal the text itself shows the progress.
  WorkProgress progress("generating", "tok", ::isatty(STDOUT_FILENO) == 0);
  int64_t drawn = 0;
  GenerateOptions generation;
  generation.vocab_size = loaded.tokenizer.vocab_size();
  if (options.stop_at_eos) generation.stop_id = loaded.tokenizer.eos_id();
  generation.emit = [&](int32_t id) {
    printer.add(id);
    progress.show(++drawn, config.max_tokens);
    return std::ferror(stdout) == 0;
  };
  ops::with_memory_hint("lower --max-tokens or shorten the prompt",
                        [&] { return generate(loaded.model, prompt, config, generation); });
  printer.finish();
  std::fputc('\n', stdout);
  check_stop("generating text");
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
      .add_option("--seed", options.seed,
                  "Random seed; the same seed gives the same text on the same machine")
      ->check(value_of_field("generate.seed"));
  command.add_flag("--stop-at-line-end", options.stop_at_eos, "End at the first line end");
}

}  // namespace

void add_generate(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("generate", "Continue a text with a checkpoint's model");
  add_model_options(command, options->model, "generate");
  command.add_option("--prompt", options->prompt, "Text to continue; -: read standard input");
  command.add_option("--prompt-file", options->prompt_file,
                     "File with the text to continue; a line end at its end is left out");
  add_sampling_options(command, *options);
  command.add_flag("--raw", options->raw,
                   "Print generated bytes that are not UTF-8 as they are, not as U+FFFD");
  command.footer(
      "Example:\n  stablemask generate --checkpoint runs/quickstart/finetuned --prompt "
      "\" = Harn\" --top-p 0.9\n"
      "--attention-window 256 lets each token see the last 256 ones only, for long texts.");
  command.callback([options] { run(*options); });
}

}  // namespace stablemask::commands
