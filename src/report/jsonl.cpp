#include "stablemask/report/jsonl.h"

#include <fstream>
#include <utility>

#include "src/report/append_file.h"
#include "src/report/record.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_text.h"
#include "stablemask/report/samples.h"

namespace stablemask {
namespace {

/// The complete lines of steps up to `last_step`.
std::string kept_lines(const std::string& path, int64_t last_step) {
  std::ifstream file(path, std::ios::binary);
  std::string kept;
  for (std::string line; std::getline(file, line) && !file.eof();) {
    const nlohmann::json record = parse_record(line);
    if (!record.is_null() && record["step"].get<int64_t>() <= last_step) kept += line + "\n";
  }
  return kept;
}

std::unique_ptr<AppendFile> cut_file(const std::string& path, int64_t last_step) {
  write_file_atomically(path, kept_lines(path, last_step), ExitCode::kCheckpoint);
  return std::make_unique<AppendFile>(path);
}

}  // namespace

JsonlMetrics::JsonlMetrics(std::string path) : path_(std::move(path)) {}
JsonlMetrics::~JsonlMetrics() = default;

void JsonlMetrics::cut_after(int64_t step) { file_ = cut_file(path_, step); }

void JsonlMetrics::record(const StepMetrics& metrics) {
  file_->append(metrics_line(metrics) + "\n", metrics.step);
}

void JsonlMetrics::sync() {
  if (file_) file_->sync();
}

JsonlSamples::JsonlSamples(std::string path) : path_(std::move(path)) {}
JsonlSamples::~JsonlSamples() = default;

void JsonlSamples::cut_after(int64_t step) { file_ = cut_file(path_, step); }

void JsonlSamples::sample(const Sample& sample) {
  const nlohmann::ordered_json line = {{"step", sample.step},
                                       {"number", sample.number},
                                       {"prompt", sample.prompt},
                                       {"continuation", sample.continuation}};
  file_->append(json_text(line) + "\n", sample.step);
}

void JsonlSamples::sync() {
  if (file_) file_->sync();
}

}  // namespace stablemask
