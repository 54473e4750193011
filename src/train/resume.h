#pragma once

#include <string>
#include <vector>

#include "src/train/run_inputs.h"
#include "src/train/run_state.h"
#include "stablemask/config/config.h"
#include "stablemask/io/checkpoint.h"

namespace stablemask {

/// Throws DataError when the checkpoint was trained with another tokenizer.
void require_same_tokenizer(const Checkpoint& checkpoint, const Tokenizer& tokenizer);

/// A checkpoint that a run goes on from, checked against the run's config and inputs.
struct ResumePoint {
  /// As saved, with the work pending that the last step is due by the config of now only.
  RunState state;
  /// Fields that differ from the checkpoint's config, one each: "/train/steps: 70 -> 60".
  std::vector<std::string> changes;
  Retention retention_before;  ///< of the checkpoint's config
};

/// Throws ConfigError naming the frozen fields that differ, DataError for another tokenizer or
/// other shards, CheckpointError for a damaged or newer state.
ResumePoint resume_point(const Checkpoint& checkpoint, const Config& now, const RunInputs& inputs);

}  // namespace stablemask
