#include "stablemask/report/jsonl.h"

#include <filesystem>
#include <limits>
#include <string_view>
#include <utility>

#include "src/report/append_file.h"
#include "src/report/record.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_text.h"
#include "stablemask/report/samples.h"

namespace stablemask {
namespace {

/// The complete lines of steps up to `last_step`; none of a file that does not exist. A file that
/// cannot be read must not pass for an empty one: it would be replaced.
std::string kept_lines(const std::string& path, int64_t last_step) {
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) return "";
  const InputFile file(path, ExitCode::kCheckpoint);
  const std::string text = file.text(std::numeric_limits<uint64_t>::max());
  std::string kept;
  size_t end = 0;
  for (size_t begin = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string line = text.substr(begin, end - begin);
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
