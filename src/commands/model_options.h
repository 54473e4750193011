#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/config_section.h"
#include "src/commands/text_data.h"
#include "src/commands/threads.h"
#include "src/commands/validators.h"
#include "src/commands/weights_option.h"
#include "stablemask/base/text.h"
#include "stablemask/config/config.h"
#include "stablemask/infer/load.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {

/// The options of the commands that run a checkpoint's model.
struct ModelOptions {
  std::string checkpoint, config, mask_length;
  std::optional<int64_t> attention_window, threads;
  std::vector<std::string> overrides;
  DeviceKind device = DeviceKind::kAuto;
  DtypeKind dtype = DtypeKind::kAuto;
  WeightKind weights = WeightKind::kAveraged;
};

/// The values of --mask-length.
inline CLI::Validator mask_length_value() {
  const CLI::Validator number = value_of_field("model.stable_mask.mask_length");
  const auto check = [number](std::string& text) -> std::string {
    if (text == "infinite" || text == "trained") return "";
    const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
    if (digits && number(text).empty()) return "";
    return "must be infinite, trained or a number of positions from 1 to 1000000000, not " +
           in_quotes(text);
  };
  return {check, ""};
}

/// `section` is the section of --config that the command uses, `threads` what --threads is by
/// default.
inline void add_model_options(CLI::App& command, ModelOptions& options, const std::string& section,
                              const char* threads = "all cores") {
  const std::map<std::string, DeviceKind> devices = {
      {"auto", DeviceKind::kAuto}, {"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}};
  const std::map<std::string, DtypeKind> dtypes = {
      {"auto", DtypeKind::kAuto}, {"fp32", DtypeKind::kFp32}, {"bf16", DtypeKind::kBf16}};
  command.add_option("--checkpoint", options.checkpoint, "Checkpoint folder, or a run folder")
      ->required();
  add_weights_option(command, options.weights);
  command.add_option("--config", options.config,
                     "Config file whose section \"" + section +
                         "\" goes before the checkpoint's; its other sections are not used");
  add_set_option(command, options.overrides);
  command
      .add_option("--mask-length", options.mask_length,
                  "StableMask's N: infinite, trained (the checkpoint's) or a number of positions; "
                  "goes before --set model.stable_mask.mask_length")
      ->check(mask_length_value());
  command
      .add_option("--attention-window", options.attention_window,
                  "Keys that a row may see, its own included; 0: all; goes before --set "
                  "model.window")
      ->check(value_of_field("model.window"));
  command.add_option("--device", options.device, "auto (the GPU if there is one), cpu or cuda")
      ->transform(one_of(devices));
  command
      .add_option("--dtype", options.dtype, "auto (bf16 on a GPU, fp32 on the CPU), fp32 or bf16")
      ->transform(one_of(dtypes));
  add_threads_option(command, options.threads, threads);
}

/// --data, --format and --field, which open_data takes.
inline void add_data_option(CLI::App& command, std::string& path, PrepareOptions& prepare) {
  command
      .add_option("--data", path,
                  "Token shard, or text or JSONL to encode with the checkpoint's tokenizer; -: "
                  "text from standard input")
      ->required();
  add_text_format(command, prepare);
}

/// load_model of the checkpoint that `options` names, on the threads of --threads, with progress on
/// standard error.
inline LoadedModel load_shown(const ModelOptions& options, LoadOptions load) {
  use_threads(options.threads);
  WorkProgress progress("loading the checkpoint", "B");
  load.progress = [&](uint64_t done, uint64_t total) {
    progress.show(static_cast<int64_t>(done), static_cast<int64_t>(total));
  };
  return load_model(options.checkpoint, load);
}

/// What load_model gets: --config's fields of `section`, then those of --set, and the flags.
/// `complete` may append to the fields of each of the two.
template <class Complete>
LoadOptions load_options(const ModelOptions& options, const std::string& section,
                         const Complete& complete) {
  LoadOptions load{
      options.device, options.dtype, {}, options.mask_length, options.attention_window, {}};
  load.weights = options.weights;
  const auto append = [&](std::vector<std::string> fields) {
    complete(fields);
    load.overrides.insert(load.overrides.end(), fields.begin(), fields.end());
  };
  if (!options.config.empty()) append(stated_fields(options.config, section));
  append(options.overrides);
  return load;
}

}  // namespace stablemask::commands
