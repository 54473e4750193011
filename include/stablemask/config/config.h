#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/config/data_config.h"
#include "stablemask/config/eval_config.h"
#include "stablemask/config/model_config.h"
#include "stablemask/config/train_config.h"

namespace stablemask {

/// All settings of a run, one member per section of a config file. A file states only the fields
/// that differ from the defaults.
struct Config {
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  EvalConfig eval;
  GenerateConfig generate;
};

/// Format version that dump_config writes as "version". A config without the key is read with the
/// names of version 0 and today's defaults.
inline constexpr int64_t kConfigVersion = 3;

/// Reads a config file: strict JSON (at most 1 MiB), migrated from older versions; then the model
/// preset, the file and `overrides` ("path.to.field=value"), the later ones taking precedence;
/// validated and resolved (see resolve). Logs config_warnings. Throws ConfigError with all errors,
/// one per line: `FILE:LINE:COLUMN: /json/pointer: message` for a value of the file,
/// `--set path=value: /json/pointer: message` for an override.
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {});

/// As load_config, from text and without logging; `name` replaces the path in messages.
Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& overrides = {});

/// parse_config for a config that the program stored (dump_config): fields that were added later
/// get the value that the older program followed, not today's default.
Config parse_saved_config(const std::string& text, const std::string& name,
                          const std::vector<std::string>& overrides = {});

/// Replaces values that stand for another field: eval.window 0 by train.context, mask_length
/// "context" by train.context, gamma "auto" by "slopes" with ALiBi and without position encoding,
/// by 1 with RoPE. load_config and parse_config have done it; call it after building a Config in
/// code. A train.micro_batch of 0 stays: it depends on the number of processes.
void resolve(Config& config);

/// Replaces train.epochs or train.tokens, if one is stated, by train.steps: as many as they come
/// to, rounded up, of training data of `sequences` sequences of train.context tokens. Without one
/// of them `train` stays as it is. Throws ConfigError for both, and for a run that is too long.
void resolve_steps(TrainConfig& train, int64_t sequences);

/// Throws ConfigError, with batches and micro-batches that work, unless each of `processes`
/// processes gets the same number of whole micro-batches of a step.
void require_equal_shares(const TrainConfig& train, int64_t processes);

/// Fields that the run will not follow to the letter, one line each: a warm-up or WSD decay longer
/// than the run, which is shortened (ScheduleConfig::resolved_…).
std::vector<std::string> config_warnings(const Config& config);

/// A field that a config states, by JSON pointer, and where, as errors name it: "c.json:3:14" or
/// "--set model.heads=8".
struct StatedField {
  std::string pointer;
  std::string place;
};

/// The fields that a valid config file and overrides state, in the order of their pointers. Throws
/// ConfigError when the file cannot be read.
std::vector<StatedField> stated_fields(const std::string& path,
                                       const std::vector<std::string>& overrides = {});

/// Version and every field as JSON. parse_config(dump_config(c)) equals a resolved c.
std::string dump_config(const Config& config);

/// JSON Schema (draft 2020-12), generated from the field table.
std::string config_schema();

/// Markdown tables of every field: name, type and range, default, frozen, description.
std::string config_reference();

/// Frozen fields (those that a resumed run may not change) whose values differ, one line each:
/// "/model/heads: 8 -> 12".
std::vector<std::string> frozen_differences(const Config& saved, const Config& now);

/// Paths of the fields that a command-line option without its dashes ("steps", "learning-rate")
/// probably means: "train.steps". Empty: none.
std::vector<std::string> fields_for_option(std::string_view option);

}  // namespace stablemask
