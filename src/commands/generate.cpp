#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/device_options.h"
#include "src/commands/validators.h"
#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/generate.h"
#include "stablemask/infer/load.h"
#include "stablemask/ops/memory.h"

namespace stablemask::commands {
namespace {

struct Options {
  std::string checkpoint, prompt, config;
  std::optional<int64_t> max_tokens, top_k, seed;
  std::optional<double> temperature, top_p;
  bool greedy = false, stop_at_eos = false;
  DeviceKind device = DeviceKind::kAuto;
  DtypeKind dtype = DtypeKind::kAuto;
};

/// Prints text as its tokens come. A character may take several tokens: what is not whole yet
/// waits.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void add(int32_t id) {
    ids_.push_back(id);
    const std::string text = tokenizer_.decode(ids_);
    print(text, whole_characters(text));
  }
  void finish() { print(tokenizer_.decode(ids_), std::string::npos); }

 private:
  /// Bytes of `text` up to its last whole UTF-8 character.
  static size_t whole_characters(const std::string& text) {
    size_t start = text.size();
    while (start > 0 && (text[start - 1] & 0xC0) == 0x80) --start;
    if (start == 0) return 0;
    const auto lead = static_cast<unsigned char>(text[start - 1]);
    const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    return text.size() - (start - 1) >= length ? text.size() : start - 1;
  }

  void print(const std::string& text, size_t end) {
    end = std::min(end, text.size());
    if (end <= printed_) return;
    std::fwrite(text.data() + printed_, 1, end - printed_, stdout);
    std::fflush(stdout);
    printed_ = end;
  }

  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  size_t printed_ = 0;
};

/// The checkpoint's settings, over them --config's, over them the flags.
GenerateConfig settings(const Options& options, const Config& saved) {
  GenerateConfig config =
      options.config.empty() ? saved.generate : load_config(options.config).generate;
  if (options.max_tokens) config.max_tokens = *options.max_tokens;
  if (options.temperature) config.temperature = *options.temperature;
  if (options.top_k) config.top_k = *options.top_k;
  if (options.top_p) config.top_p = *options.top_p;
  if (options.seed) config.seed = *options.seed;
  if (options.greedy) config.temperature = 0.0;
  return config;
}

/// Training text begins a line behind an EOS, and so does the prompt.
std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = {tokenizer.eos_id()};
  try {
    for (const int32_t id : tokenizer.encode(text)) ids.push_back(id);
  } catch (const DataError& error) {
    throw DataError(std::string("--prompt: ") + error.what());
  }
  return ids;
}

void run(const Options& options) {
  LoadedModel loaded = load_model(options.checkpoint, options.device, options.dtype);
  const GenerateConfig config = settings(options, loaded.config);
  const std::vector<int32_t> prompt = prompt_ids(loaded.tokenizer, options.prompt);
  const int32_t last = options.stop_at_eos ? loaded.tokenizer.eos_id() : -1;

  std::fwrite(options.prompt.data(), 1, options.prompt.size(), stdout);
  TextStream stream(loaded.tokenizer);
  ops::with_memory_hint("lower --max-tokens or shorten the prompt", [&] {
    return generate(loaded.model, prompt, config, last, [&](int32_t id) {
      stream.add(id);
      return std::ferror(stdout) == 0;
    });
  });
  stream.finish();
  std::fputc('\n', stdout);
  if (const int signal = stop_signal()) throw ExitWith{128 + signal};
}

}  // namespace

void add_generate(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("generate", "Continue a text with a checkpoint's model");
  command.add_option("--checkpoint", options->checkpoint, "Checkpoint folder, or a run folder")
      ->required();
  command.add_option("--prompt", options->prompt, "Text to continue; begins a line")->required();
  command.add_option("--config", options->config, "Take the generate section of this config file");
  command.add_option("--max-tokens", options->max_tokens, "Tokens to generate")
      ->check(number_from(1, 1e9));
  command.add_option("--temperature", options->temperature, "Divides the logits; 0: greedy")
      ->check(number_from(0, 100));
  command.add_flag("--greedy", options->greedy, "Always the likeliest token (temperature 0)");
  command.add_option("--top-k", options->top_k, "Draw among the k likeliest; 0: all")
      ->check(number_from(0));
  command.add_option("--top-p", options->top_p, "Draw among the likeliest that hold this mass")
      ->check(number_from(0.0, 1.0));
  command.add_option("--seed", options->seed, "Same seed, same text")->check(number_from(0));
  command.add_flag("--stop-at-line-end", options->stop_at_eos, "Stop where the line ends");
  add_device_options(command, options->device, options->dtype);
  command.footer(
      "Example:\n  stablemask generate --checkpoint runs/quickstart/finetuned --prompt "
      "\" = Harn \" --top-p 0.9");
  command.callback([options] { run(*options); });
}

}  // namespace stablemask::commands
