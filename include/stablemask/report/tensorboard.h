#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "stablemask/report/metrics.h"

namespace stablemask {

class AppendFile;
struct TensorboardEvent;

/// Writes a TensorBoard event file into a folder: every metric with a tag (MetricField::tag) as a
/// scalar, the config as the text "config", samples as the texts "samples/prompt N". A record that
/// cannot be written, for example because the disk is full, is left out, with one warning per run;
/// training goes on.
class TensorboardMetrics final : public MetricsSink {
 public:
  /// Does not touch the folder; cut_after must come before the others. `config_json`: UTF-8.
  TensorboardMetrics(std::string folder, std::string config_json);
  ~TensorboardMetrics() override;
  TensorboardMetrics(const TensorboardMetrics&) = delete;
  TensorboardMetrics& operator=(const TensorboardMetrics&) = delete;

  /// Makes the folder if there is none. Goes on with the newest file of an earlier process when
  /// nothing in it has to be removed. Otherwise writes what remains of it to a file with a later
  /// time in its name and removes the old one: a running TensorBoard notices new files, not
  /// replaced ones. Records the config unless the last one recorded is the same. Throws
  /// CheckpointError.
  void cut_after(int64_t step) override;
  void record(const StepMetrics& metrics) override;
  void sample(const Sample& sample) override;
  void sync() override;

 private:
  void append(TensorboardEvent event);

  std::string folder_, config_;  ///< config_: as Markdown
  std::unique_ptr<AppendFile> file_;
};

}  // namespace stablemask
