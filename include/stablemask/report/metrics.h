#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace stablemask {

/// One line of metrics.jsonl; each field is a key of the same name. Numbers that are not finite are
/// written as null, fields without a value are left out.
struct StepMetrics {
  int64_t step = 0;
  int64_t tokens = 0;             ///< valid target tokens trained on since step 1
  double loss = 0;                ///< of this step, nats per token (z-loss included when it is on)
  double grad_norm = 0;           ///< global L2 norm before clipping
  double lr = 0;                  ///< of this step
  int64_t skipped = 0;            ///< non-finite steps skipped so far
  double tokens_per_second = 0;   ///< since the line before, without validation and saving
  std::optional<double> mfu;      ///< GPU only: model FLOPs utilisation against 989e12 (H100, bf16)
  int64_t peak_memory_bytes = 0;  ///< GPU: most allocated; CPU: largest resident set
  double seconds = 0;             ///< of the whole run so far, all resumes together
  std::optional<double> valid_loss;      ///< nats per token over the whole validation shard
  std::optional<double> valid_word_ppl;  ///< exp(Σ NLL / (words + EOS)) of it
};

/// The line without "\n".
std::string metrics_line(const StepMetrics& metrics);

/// The append-only metrics file of a run, with each step once. A line that cannot be written is
/// left out with one warning: a full disk must not end a run that can go on.
class MetricsLog {
 public:
  /// Opens or creates the file; lines of steps after `last_step` and a torn last line are cut, so
  /// that a resumed run continues where its checkpoint stands. Throws CheckpointError.
  MetricsLog(const std::string& path, int64_t last_step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  void append(const StepMetrics& metrics);
  /// Waits until the lines are on the disk; before a checkpoint that counts on them.
  void sync();

 private:
  std::string path_;
  int file_ = -1;
  int64_t size_ = 0;
  bool warned_ = false;
};

}  // namespace stablemask
