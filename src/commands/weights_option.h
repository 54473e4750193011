#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "src/commands/validators.h"
#include "stablemask/io/checkpoint.h"

namespace stablemask::commands {

/// --weights of the commands that read a checkpoint's weights.
inline void add_weights_option(CLI::App& command, WeightKind& weights) {
  const std::map<std::string, WeightKind> kinds = {{"averaged", WeightKind::kAveraged},
                                                   {"trained", WeightKind::kTrained}};
  command
      .add_option("--weights", weights,
                  "Of a run with train.ema_decay: averaged (default), or trained, those that "
                  "training goes on from")
      ->transform(one_of(kinds));
}

}  // namespace stablemask::commands
