#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

namespace stablemask {

/// The progress of a run: state.json of a checkpoint, one key per field. Data order and random
/// numbers are functions of (seed, step), so no generator state is stored.
struct RunState {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

  int64_t step = 0;                 ///< steps done, skipped ones included
  int64_t tokens = 0;               ///< valid target tokens of the updates
  int64_t skipped = 0;              ///< steps skipped because loss or norm was not finite
  int64_t skipped_in_a_row = 0;     ///< the last steps that were
  bool validation_pending = false;  ///< the validation of step `step` is still to be done
  bool line_pending = false;        ///< its metrics are still to be recorded
  double loss = kNone;              ///< of step `step`
  double grad_norm = kNone;         ///< of step `step`
  double valid_loss = kNone;        ///< of the last validation
  double valid_word_ppl = kNone;    ///< of the last validation
  double seconds = 0;               ///< wall-clock time so far
  std::string train_sha256;         ///< RunInputs::train_sha256
  double lr = kNone;                ///< of step `step`; since version 1
  double loss_sum = 0;      ///< Σ loss·tokens since the last line of the metrics; since version 2
  int64_t loss_tokens = 0;  ///< Σ tokens of loss_sum, skipped steps excluded; since version 2
  int64_t valid_tokens = 0;  ///< scored by the last validation; since version 3, as the next ones
  double best_loss = kNone;  ///< lowest loss of the validations that were compared
  int64_t best_step = 0;     ///< of best_loss; 0: none yet
  int64_t stale_validations = 0;  ///< compared since then, none of them lower

  /// nn::Fp8Products::clipped, of a run with fp8 products. Not stored: those have a state of their
  /// own in the checkpoint.
  std::optional<int64_t> fp8_clipped;

  /// Nothing is pending for step `step` any more: the next line of the metrics begins after it.
  void start_line() {
    validation_pending = line_pending = false;
    loss_sum = 0;
    loss_tokens = 0;
  }
  /// Enters the validation loss of step `step`, on the same tokens as those compared before.
  void compare(double validation_loss) {
    const bool lower = best_step == 0 ? !std::isnan(validation_loss) : validation_loss < best_loss;
    if (!lower) {
      ++stale_validations;
      return;
    }
    best_loss = validation_loss;
    best_step = step;
    stale_validations = 0;
  }
  bool out_of_patience(int64_t patience) const {
    return patience > 0 && stale_validations >= patience;
  }
  /// Number of the optimizer's updates so far.
  int64_t updates() const { return step - skipped; }
  /// Mean loss per token since the last line of the metrics; that of step `step` if no step since
  /// was an update.
  double loss_mean() const {
    return loss_tokens > 0 ? loss_sum / static_cast<double>(loss_tokens) : loss;
  }
};

std::string to_json(const RunState& state);

/// Reads what to_json of this or an earlier version of the program wrote; fields that the version
/// lacks get their defaults. Throws CheckpointError naming `name` for a newer version, an unknown,
/// missing or repeated field, a wrong type or range, values that contradict each other, and a step
/// other than `step`, the checkpoint's.
RunState run_state_from_json(const std::string& text, const std::string& name, int64_t step);

}  // namespace stablemask
