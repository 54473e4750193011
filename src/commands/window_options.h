#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/commands/config_section.h"
#include "src/commands/validators.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/load.h"

/// The windows of `eval` and `score`.
namespace stablemask::commands {

constexpr int64_t kLongestWindow = 1 << 24;

struct WindowOptions {
  std::optional<int64_t> window, stride, batch;
};

inline void add_window_options(CLI::App& command, WindowOptions& options) {
  command
      .add_option(
          "--window", options.window,
          "Tokens of a forward pass; 0: the training context. Longer measures extrapolation")
      ->check(number_from(0, kLongestWindow));
  command
      .add_option("--stride", options.stride,
                  "Tokens scored per window, its last ones; 0: all, windows do not overlap")
      ->check(number_from(0, kLongestWindow));
  command.add_option("--batch", options.batch, "Windows per forward pass; 0: chosen automatically")
      ->check(value_of_field("eval.batch"));
}

/// Whether one of the fields ("path.to.field=value") is `field`.
inline bool states(const std::vector<std::string>& fields, const std::string& field) {
  return std::ranges::any_of(
      fields, [&](const std::string& text) { return text.starts_with(field + "="); });
}

/// A window without a stride means windows that do not overlap, whatever the stride was before.
inline void complete_window(std::vector<std::string>& fields) {
  if (states(fields, "eval.window") && !states(fields, "eval.stride")) {
    fields.push_back("eval.stride=0");
  }
}

/// The options of the loaded config, with the flags in place of its values.
inline EvalOptions window_settings(const WindowOptions& options, const LoadedModel& loaded) {
  Config config = loaded.config;
  if (options.window) {
    config.eval.window = *options.window;
    config.eval.stride = 0;
  }
  if (options.stride) config.eval.stride = *options.stride;
  if (options.batch) config.eval.batch = *options.batch;
  return eval_options(config, loaded.tokenizer);
}

}  // namespace stablemask::commands
