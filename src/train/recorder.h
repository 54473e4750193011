#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "src/train/run_state.h"
#include "stablemask/dist/group.h"
#include "stablemask/report/metrics.h"

namespace stablemask {

/// Measures time and rates of a run, composes its metrics and passes them to the sinks.
class Recorder {
 public:
  struct Options {
    at::Device device = at::kCPU;
    double flops_per_token = 0;
    std::optional<double> peak_flops;  ///< of the device; without it no MFU
    double seconds_before = 0;         ///< trained before this start of the run
  };
  /// Rates are those of all processes of `group`.
  Recorder(std::vector<std::shared_ptr<MetricsSink>> sinks, const Options& options,
           std::shared_ptr<dist::Group> group);

  void start_clock();
  double seconds_here() const;       ///< since start_clock
  double seconds() const;            ///< of the whole run
  double tokens_per_second() const;  ///< of all steps of this process
  void start_step() { step_start_ = Clock::now(); }
  /// For the rates; `tokens` 0: a skipped step, which does not count.
  void end_step(int64_t tokens);
  /// Without validation; the peak memory is this process's.
  StepMetrics metrics(const RunState& state) const;
  /// Composes the metrics of step state.step, with the validation's if it is pending in `state` and
  /// the largest peak memory of all processes, and passes them to the sinks. All processes call it.
  StepMetrics record(const RunState& state);
  void record(const Sample& sample);

  /// MetricsSink::cut_after and sync of all sinks.
  void cut_after(int64_t step);
  void sync();

 private:
  using Clock = std::chrono::steady_clock;
  struct Rate {
    int64_t tokens = 0;
    double seconds = 0;
    double per_second() const { return seconds > 0 ? tokens / seconds : 0; }
  };

  std::vector<std::shared_ptr<MetricsSink>> sinks_;
  Options options_;
  std::shared_ptr<dist::Group> group_;
  Clock::time_point start_ = Clock::now(), step_start_ = start_;
  Rate line_, whole_;  ///< since the last record; since start_clock
};

}  // namespace stablemask
