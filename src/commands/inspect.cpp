#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/inspect_json.h"
#include "src/commands/model_options.h"
#include "src/commands/model_report.h"
#include "src/commands/text_data.h"
#include "src/commands/validators.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/output.h"
#include "stablemask/infer/generate.h"
#include "stablemask/infer/inspect.h"
#include "stablemask/infer/load.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

struct Options {
  ModelOptions model;
  std::string data, out;
  PrepareOptions prepare;  // of --data
  std::optional<std::string> text;
  std::optional<int64_t> window;
  int64_t windows = 16, map_tokens = 64;
};

void create_folder(const std::string& path) {
  if (path == "-") throw ConfigError("--out -: two files are written; name a folder");
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!std::filesystem::is_directory(path)) {
    throw ConfigError("--out " + path + ": cannot be created: " +
                      (error ? error.message() : "a file of that name is there") +
                      "; name another folder");
  }
}

/// The tokens of the attention maps, EOS first as in training.
std::vector<int64_t> map_tokens(const Options& options, const Shard& shard,
                                const Tokenizer& tokenizer) {
  if (!options.text) return first_inputs(shard, tokenizer.start_id(), options.map_tokens);
  const std::vector<int32_t> ids = prompt_ids(tokenizer, *options.text, "--text");
  const auto count = std::min(static_cast<int64_t>(ids.size()), options.map_tokens);
  return {ids.begin(), ids.begin() + count};
}

void write_maps(OutputFile& file, LoadedModel& loaded, const std::vector<int64_t>& tokens) {
  file.write(maps_json_head(tokens, loaded.tokenizer));
  attention_maps(loaded.model, tokens, [&](const AttentionMap& map) { file.write(map_json(map)); });
  file.write(maps_json_tail());
}

/// `overrides`: the changes to the checkpoint's config.
Inspection inspect_windows(const Options& options, const std::vector<std::string>& overrides,
                           LoadedModel& loaded, const Shard& shard) {
  InspectOptions inspection;
  inspection.window = options.window.value_or(0);
  if (inspection.window == 0) inspection.window = loaded.config.train.context;
  inspection.windows = options.windows;
  inspection.eos_id = loaded.tokenizer.start_id();
  inspection.document_mask = loaded.config.data.document_mask;
  if (shard.size() < inspection.window) {
    throw DataError(
        format("--data %s: %lld tokens, fewer than one window of %lld; use a longer "
               "text or a smaller --window",
               options.data.c_str(), static_cast<long long>(shard.size()),
               static_cast<long long>(inspection.window)));
  }
  warn_rows_without_mass(loaded.config.model, overrides, inspection.window);
  WorkProgress progress("inspecting", "tok");
  inspection.progress = [&](int64_t done, int64_t total) { progress.show(done, total); };
  return inspect(loaded.model, shard, inspection);
}

void print_hidden(const HiddenStatistics& hidden) {
  std::printf(" %8.4g %8.4g %6.1f%% (%lld)\n", mean(hidden.norm), hidden.norm_max,
              100 * hidden.top_channel_share, static_cast<long long>(hidden.top_channel));
}

/// The mean over a layer's heads of one statistic.
double layer_mean(const std::vector<HeadStatistics>& heads,
                  const std::vector<double> HeadStatistics::*statistic) {
  double sum = 0;
  for (const HeadStatistics& head : heads) sum += mean(head.*statistic);
  return sum / static_cast<double>(heads.size());
}

void print_report(const Options& options, const LoadedModel& loaded, const Inspection& result) {
  std::printf("checkpoint %s (step %lld)\n", loaded.folder.c_str(),
              static_cast<long long>(loaded.step));
  std::printf("text       %s, %lld windows of %lld tokens\n", options.data.c_str(),
              static_cast<long long>(result.windows), static_cast<long long>(result.window));
  std::fputs((model_lines(loaded.config) + "\n").c_str(), stdout);
  std::printf("                mean over heads and rows                hidden states\n");
  std::printf("layer    mask  entropy   first  heaviest      norm  largest  top channel\n");
  std::printf("        ratio     nats   token     token\n");
  std::printf("%-6s %34s", "input", "");
  print_hidden(result.hidden.front());
  for (size_t layer = 0; layer < result.heads.size(); ++layer) {
    const std::vector<HeadStatistics>& heads = result.heads[layer];
    std::printf("%-6zu %6.4f %8.3f  %6.4f    %6.4f ", layer,
                layer_mean(heads, &HeadStatistics::mask_ratio),
                layer_mean(heads, &HeadStatistics::entropy),
                layer_mean(heads, &HeadStatistics::first_token),
                layer_mean(heads, &HeadStatistics::heaviest_token));
    print_hidden(result.hidden[layer + 1]);
  }
  std::printf("%-6s %34s", "output", "");
  print_hidden(result.hidden.back());
  std::printf("\nwritten to %s: inspect.json, maps.json\n", options.out.c_str());
}

void run(const Options& options) {
  const auto nothing = [](std::vector<std::string>&) {};
  LoadOptions load = load_options(options.model, "eval", nothing);
  load.dtype = DtypeKind::kFp32;
  create_folder(options.out);
  for (const char* name : {"/inspect.json", "/maps.json"}) {
    require_other_file(options.out + name, {options.data});
  }
  OutputFile statistics(options.out + "/inspect.json", OutputContent::kText, ExitCode::kConfig);
  OutputFile maps(options.out + "/maps.json", OutputContent::kText, ExitCode::kConfig);
  LoadedModel loaded = load_shown(options.model, load);
  const TemporaryFolder temporary;
  const Shard shard = open_data(options.data, loaded.tokenizer, temporary.path(), options.prepare,
                                options.model.threads);

  const Inspection result = inspect_windows(options, load.overrides, loaded, shard);
  write_maps(maps, loaded, map_tokens(options, shard, loaded.tokenizer));
  statistics.write(inspection_json(result, loaded, options.data));
  maps.commit();
  statistics.commit();
  print_report(options, loaded, result);
}

}  // namespace

void add_inspect_model(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *program.add_subcommand(
      "inspect", "Statistics and maps of a checkpoint's attention and hidden states, as JSON");
  add_model_options(command, options->model, "eval");
  // Everything is computed in fp32, and no field of a config's section "eval" matters.
  for (const char* unused : {"--dtype", "--config"}) {
    command.remove_option(command.get_option(unused));
  }
  add_data_option(command, options->data, options->prepare);
  command
      .add_option("--out", options->out,
                  "Folder for inspect.json and maps.json; made when it is not there")
      ->required();
  command
      .add_option("--windows", options->windows,
                  "Number of windows, spread evenly over the text; fewer when it has fewer")
      ->capture_default_str()
      ->check(number_from(1, 1 << 24));
  command.add_option("--window", options->window, "Tokens of a window; 0: the training context")
      ->check(number_from(0, 1 << 24));
  command.add_option("--text", options->text,
                     "Text of the attention maps; without it, the start of the first window");
  command
      .add_option("--map-tokens", options->map_tokens,
                  "Tokens of the attention maps, the line end before the text included")
      ->capture_default_str()
      ->check(number_from(1, 128));
  command.footer(
      "Example:\n"
      "  stablemask inspect --checkpoint runs/quickstart/pretrained --data wiki.test.tokens "
      "--out runs/quickstart/pretrained/inspect\n"
      "docs/formats.md describes the files; --set changes the fields that eval can change.");
  command.callback([options] { run(*options); });
}

}  // namespace stablemask::commands
