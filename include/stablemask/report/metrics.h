#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace stablemask {

struct Sample;

/// Metrics of one optimizer step. Units and meanings: metric_fields().
struct StepMetrics {
  int64_t step = 0;
  int64_t tokens = 0;
  double loss = 0;
  double loss_mean = 0;
  double grad_norm = 0;
  double lr = 0;
  int64_t skipped = 0;
  std::optional<int64_t> fp8_clipped;
  double tokens_per_second = 0;
  std::optional<double> mfu;
  int64_t peak_memory_bytes = 0;
  double seconds = 0;
  std::optional<double> valid_loss;
  std::optional<double> valid_word_ppl;
  std::optional<int64_t> valid_tokens;
};

/// std::monostate: an optional metric without a value at this step.
using MetricValue = std::variant<std::monostate, int64_t, double>;

/// Declaration of one metric. Every output (metrics.jsonl, terminal, docs/formats.md, further
/// sinks) is generated from the list of these.
struct MetricField {
  const char* name;  ///< key in metrics.jsonl
  const char* unit;
  const char* meaning;
  bool optional;  ///< may be std::monostate; then sinks leave it out
  MetricValue (*value)(const StepMetrics& metrics);
  /// Its part of the terminal's line in a run of `steps` steps; "" or a null function: not shown.
  std::string (*terminal)(const StepMetrics& metrics, int64_t steps);
  /// In TensorBoard, "GROUP/NAME"; null: not shown there.
  const char* tag = nullptr;
};

/// In the order of output.
const std::vector<MetricField>& metric_fields();

/// The table of docs/formats.md, Markdown.
std::string metrics_reference();

/// One JSON object without "\n": the fields that have a value. Numbers that are not finite are
/// written as null.
std::string metrics_line(const StepMetrics& metrics);

/// The line for people: "step 120/2000 | loss 4.1234 | lr 9.80e-04 | 12.3k tok/s | ETA 3m05s". Its
/// loss is loss_mean.
std::string progress_text(const StepMetrics& metrics, int64_t steps);

/// 12345 of unit "tok" → "12.3k tok/s".
std::string rate_text(double rate, const char* unit);

/// 3725 → "1h02m", 185 → "3m05s", 7.2 → "7s".
std::string duration_text(double seconds);

/// Receives the metrics of a run, of every train.log_every-th step and of every validated step, and
/// the samples of its validations.
class MetricsSink {
 public:
  virtual ~MetricsSink() = default;

  /// Called once, before the first record: discards everything recorded for steps after `step`.
  /// A resumed run continues at the step of its checkpoint, which may be older than the records.
  virtual void cut_after(int64_t step) = 0;
  /// In ascending order of metrics.step, each step once.
  virtual void record(const StepMetrics& metrics) = 0;
  /// After the record of sample.step, in ascending order of sample.number.
  virtual void sample(const Sample& sample) { static_cast<void>(sample); }
  /// Returns when all records are on durable storage; called before each checkpoint.
  virtual void sync() = 0;
};

}  // namespace stablemask
