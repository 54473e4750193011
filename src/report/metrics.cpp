#include "stablemask/report/metrics.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"

namespace stablemask {
namespace {

template <typename T>
MetricValue optional_value(const std::optional<T>& value) {
  if (!value) return std::monostate();
  return *value;
}

std::string step_text(const StepMetrics& m, int64_t steps) {
  return format("step %lld/%lld", static_cast<long long>(m.step), static_cast<long long>(steps));
}

std::string skipped_text(const StepMetrics& m, int64_t) {
  return m.skipped > 0 ? format("skipped %lld", static_cast<long long>(m.skipped)) : "";
}

/// Tokens per second and, from it, the time left.
std::string speed_text(const StepMetrics& m, int64_t steps) {
  const double rate = m.tokens_per_second;
  if (!(rate > 0)) return "";
  const double step_tokens = m.step > 0 ? static_cast<double>(m.tokens) / m.step : 0;
  return rate_text(rate, "tok") + " | ETA " + duration_text((steps - m.step) * step_tokens / rate);
}

std::string optional_text(const char* pattern, const std::optional<double>& value, double scale) {
  if (!value) return "";
  char text[64];
  std::snprintf(text, sizeof text, pattern, scale * *value);
  return text;
}

}  // namespace

const std::vector<MetricField>& metric_fields() {
  using M = const StepMetrics&;
  using Value = MetricValue;
  static const std::vector<MetricField> fields = {
      {"step", "", "optimizer steps done", false, [](M m) -> Value { return m.step; }, step_text},
      {"tokens", "tokens", "target tokens trained on since step 1; those of skipped steps excluded",
       false, [](M m) -> Value { return m.tokens; }, nullptr, "progress/tokens"},
      {"loss", "nats per token", "training loss of this step, z-loss included when it is on", false,
       [](M m) -> Value { return m.loss; }, nullptr, "loss/train"},
      {"loss_mean", "nats per token",
       "mean of `loss` over the tokens of the steps since the line before, skipped ones excluded",
       false, [](M m) -> Value { return m.loss_mean; },
       [](M m, int64_t) { return format("loss %.4f", m.loss_mean); }, "loss/train_mean"},
      {"grad_norm", "", "global L2 norm of the gradients before clipping", false,
       [](M m) -> Value { return m.grad_norm; }, nullptr, "optimizer/grad_norm"},
      {"lr", "", "learning rate of this step", false, [](M m) -> Value { return m.lr; },
       [](M m, int64_t) { return format("lr %.2e", m.lr); }, "optimizer/lr"},
      {"skipped", "steps", "steps skipped so far because loss or gradient norm was not finite",
       false, [](M m) -> Value { return m.skipped; }, skipped_text, "optimizer/skipped_steps"},
      {"fp8_clipped", "",
       "how often a tensor of an fp8 product outgrew its scale, so that numbers were clipped, so "
       "far; only with train.precision fp8",
       true, [](M m) { return optional_value(m.fp8_clipped); }, nullptr, "optimizer/fp8_clipped"},
      {"tokens_per_second", "tokens/s",
       "of all processes, since the line before, time of validation and saving excluded", false,
       [](M m) -> Value { return m.tokens_per_second; }, speed_text, "speed/tokens_per_second"},
      {"mfu", "1",
       "model FLOPs utilization against the dense bf16 peak of all GPUs of the run; only on GPUs "
       "whose peak is known",
       true, [](M m) { return optional_value(m.mfu); },
       [](M m, int64_t) { return optional_text("MFU %.1f%%", m.mfu, 100); }, "speed/mfu"},
      {"peak_memory_bytes", "bytes",
       "GPU: maximum of the allocator so far; CPU: maximum resident set of the process; of several "
       "processes the largest",
       false, [](M m) -> Value { return m.peak_memory_bytes; }, nullptr, "memory/peak_bytes"},
      {"seconds", "s", "wall-clock time of the run so far, summed over all resumes", false,
       [](M m) -> Value { return m.seconds; }, nullptr, "progress/seconds"},
      {"valid_loss", "nats per token",
       "of the validation shard, or of its first eval.tokens before the last step; only on the "
       "lines of validated steps",
       true, [](M m) { return optional_value(m.valid_loss); },
       [](M m, int64_t) { return optional_text("valid loss %.4f", m.valid_loss, 1); },
       "loss/valid"},
      {"valid_word_ppl", "",
       "word perplexity of the validation shard, exp(sum of NLL / (words + lines)); not of a part",
       true, [](M m) { return optional_value(m.valid_word_ppl); },
       [](M m, int64_t) { return optional_text("valid word ppl %.2f", m.valid_word_ppl, 1); },
       "perplexity/valid_word"},
      {"valid_tokens", "tokens", "that the validation scored", true,
       [](M m) { return optional_value(m.valid_tokens); }, nullptr, "progress/valid_tokens"},
  };
  return fields;
}

std::string metrics_reference() {
  std::string table = "| field | unit | meaning |\n| --- | --- | --- |\n";
  for (const MetricField& field : metric_fields()) {
    table += format("| `%s` | %s | %s |\n", field.name, field.unit, field.meaning);
  }
  return table;
}

std::string metrics_line(const StepMetrics& metrics) {
  nlohmann::ordered_json json;
  for (const MetricField& field : metric_fields()) {
    const MetricValue value = field.value(metrics);
    if (const auto* whole = std::get_if<int64_t>(&value)) json[field.name] = *whole;
    // JSON has no NaN and no infinity.
    if (const auto* number = std::get_if<double>(&value)) {
      json[field.name] =
          std::isfinite(*number) ? nlohmann::ordered_json(*number) : nlohmann::ordered_json();
    }
  }
  return json_text(json);
}

std::string progress_text(const StepMetrics& metrics, int64_t steps) {
  std::string line;
  for (const MetricField& field : metric_fields()) {
    const std::string text = field.terminal ? field.terminal(metrics, steps) : "";
    if (!text.empty()) line += (line.empty() ? "" : " | ") + text;
  }
  return line;
}

std::string rate_text(double rate, const char* unit) {
  if (rate >= 1e6) return format("%.2fM %s/s", rate / 1e6, unit);
  if (rate >= 1e3) return format("%.1fk %s/s", rate / 1e3, unit);
  return format(rate < 10 ? "%.1f %s/s" : "%.0f %s/s", rate, unit);
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<long long>(std::llround(std::max(0.0, seconds)));
  if (whole >= 3600) return format("%lldh%02lldm", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return format("%lldm%02llds", whole / 60, whole % 60);
  return format("%llds", whole);
}

}  // namespace stablemask
