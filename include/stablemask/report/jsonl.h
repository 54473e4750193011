#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "stablemask/report/metrics.h"

namespace stablemask {

class AppendFile;

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
  std::unique_ptr<AppendFile> file_;
};

/// Appends one line per sample to a file (samples.jsonl of a run); otherwise as JsonlMetrics.
class JsonlSamples final : public MetricsSink {
 public:
  explicit JsonlSamples(std::string path);
  ~JsonlSamples() override;
  JsonlSamples(const JsonlSamples&) = delete;
  JsonlSamples& operator=(const JsonlSamples&) = delete;

  void cut_after(int64_t step) override;
  void record(const StepMetrics&) override {}
  void sample(const Sample& sample) override;
  void sync() override;

 private:
  std::string path_;
  std::unique_ptr<AppendFile> file_;
};

}  // namespace stablemask
