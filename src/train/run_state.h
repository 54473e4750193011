#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace stablemask {

/// What a run knows besides weights, optimizer moments and config: state.json of a checkpoint, each
/// field under its own name. The data order and all randomness follow from (seed, step), so no
/// generator state is here.
struct RunState {
  int64_t step = 0;                 ///< steps done, skipped ones included
  int64_t tokens = 0;               ///< valid target tokens of the updates
  int64_t skipped = 0;              ///< non-finite steps skipped in all
  int64_t skipped_in_a_row = 0;     ///< up to now
  bool validation_pending = false;  ///< step `step` still has to be validated
  bool line_pending = false;        ///< and its line of metrics.jsonl written
  double loss = std::numeric_limits<double>::quiet_NaN();            ///< of step `step`
  double grad_norm = std::numeric_limits<double>::quiet_NaN();       ///< of step `step`
  double valid_loss = std::numeric_limits<double>::quiet_NaN();      ///< of the last validation
  double valid_word_ppl = std::numeric_limits<double>::quiet_NaN();  ///< of the last validation
  double seconds = 0;                                                ///< wall-clock time so far
  std::string train_sha256;                                          ///< RunInputs::train_sha256

  /// Updates AdamW has made: its bias correction counts these.
  int64_t updates() const { return step - skipped; }
};

std::string to_json(const RunState& state);
/// Throws CheckpointError naming `name` on anything that to_json does not write.
RunState run_state_from_json(const std::string& text, const std::string& name);

}  // namespace stablemask
