#include "src/train/recorder.h"

#include <cmath>
#include <utility>

#include "stablemask/ops/memory.h"

namespace stablemask {

Recorder::Recorder(std::vector<std::shared_ptr<MetricsSink>> sinks, const Options& options,
                   std::shared_ptr<dist::Group> group)
    : sinks_(std::move(sinks)), options_(options), group_(std::move(group)) {}

void Recorder::start_clock() { start_ = Clock::now(); }

double Recorder::seconds_here() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

double Recorder::seconds() const { return options_.seconds_before + seconds_here(); }

double Recorder::tokens_per_second() const { return whole_.per_second(); }

void Recorder::end_step(int64_t tokens) {
  if (tokens == 0) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - step_start_).count();
  for (Rate* rate : {&line_, &whole_}) {
    rate->tokens += tokens;
    rate->seconds += seconds;
  }
}

StepMetrics Recorder::metrics(const RunState& state) const {
  StepMetrics metrics;
  metrics.step = state.step;
  metrics.tokens = state.tokens;
  metrics.loss = state.loss;
  metrics.loss_mean = state.loss_mean();
  metrics.grad_norm = state.grad_norm;
  metrics.lr = state.lr;
  metrics.skipped = state.skipped;
  metrics.fp8_clipped = state.fp8_clipped;
  metrics.tokens_per_second = line_.tokens > 0 ? line_.per_second() : whole_.per_second();
  if (options_.peak_flops) {
    const double peak = *options_.peak_flops * static_cast<double>(group_->size());
    metrics.mfu = metrics.tokens_per_second * options_.flops_per_token / peak;
  }
  metrics.peak_memory_bytes = ops::peak_memory_bytes(options_.device);
  metrics.seconds = seconds();
  return metrics;
}

StepMetrics Recorder::record(const RunState& state) {
  StepMetrics line = metrics(state);
  line.peak_memory_bytes = group_->agree(line.peak_memory_bytes);
  if (state.validation_pending) {
    line.valid_loss = state.valid_loss;
    line.valid_tokens = state.valid_tokens;
    // Undefined for samples, for a part of the text, and where the tokens need not hold all of it.
    if (!std::isnan(state.valid_word_ppl)) line.valid_word_ppl = state.valid_word_ppl;
  }
  for (const auto& sink : sinks_) sink->record(line);
  line_ = {};
  return line;
}

void Recorder::record(const Sample& sample) {
  for (const auto& sink : sinks_) sink->sample(sample);
}

void Recorder::cut_after(int64_t step) {
  for (const auto& sink : sinks_) sink->cut_after(step);
}

void Recorder::sync() {
  for (const auto& sink : sinks_) sink->sync();
}

}  // namespace stablemask
