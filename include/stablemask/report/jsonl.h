#pragma once

#include <cstdint>
#include <string>

#include "stablemask/report/metrics.h"

namespace stablemask {

/// Appends one line per record to a file (metrics.jsonl of a run). A line that cannot be written,
/// for example because the disk is full, is left out, with one warning per run; training goes on.
class JsonlMetrics final : public MetricsSink {
 public:
  /// Does not touch the file; cut_after must come before record.
  explicit JsonlMetrics(std::string path);
  ~JsonlMetrics() override;
  JsonlMetrics(const JsonlMetrics&) = delete;
  JsonlMetrics& operator=(const JsonlMetrics&) = delete;

  /// Opens or creates the file; removes lines of later steps and an incomplete last line. Throws
  /// CheckpointError.
  void cut_after(int64_t step) override;
  void record(const StepMetrics& metrics) override;
  void sync() override;

 private:
  std::string path_;
  int file_ = -1;
  int64_t size_ = 0;
  bool warned_ = false;
};

}  // namespace stablemask
