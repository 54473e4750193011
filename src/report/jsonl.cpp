#include "stablemask/report/jsonl.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"

namespace stablemask {
namespace {

/// The complete lines of steps up to `last_step`.
std::string kept_lines(const std::string& path, int64_t last_step) {
  std::ifstream file(path, std::ios::binary);
  std::string kept;
  for (std::string line; std::getline(file, line) && !file.eof();) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;
    if (json["step"].get<int64_t>() <= last_step) kept += line + "\n";
  }
  return kept;
}

}  // namespace

JsonlMetrics::JsonlMetrics(std::string path) : path_(std::move(path)) {}

JsonlMetrics::~JsonlMetrics() {
  if (file_ >= 0) ::close(file_);
}

void JsonlMetrics::cut_after(int64_t step) {
  const std::string kept = kept_lines(path_, step);
  write_file_atomically(path_, kept, ExitCode::kCheckpoint);
  if (file_ >= 0) ::close(file_);
  file_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file_ < 0) throw CheckpointError(path_ + ": cannot be opened: " + std::strerror(errno));
  size_ = static_cast<int64_t>(kept.size());
}

void JsonlMetrics::record(const StepMetrics& metrics) {
  const std::string line = metrics_line(metrics) + "\n";
  const ssize_t written =
      retry_interrupted([&] { return ::write(file_, line.data(), line.size()); });
  if (written == static_cast<ssize_t>(line.size())) {
    size_ += written;
    return;
  }
  const int reason = written < 0 ? errno : ENOSPC;
  // Removes an incomplete line, so that every line of the file stays valid JSON.
  const bool restored = ::ftruncate(file_, size_) == 0;
  if (!warned_) {
    log_warning(path_ + ": step " + std::to_string(metrics.step) + " not recorded: " +
                std::strerror(reason) + (restored ? "" : "; the last line may be incomplete"));
  }
  warned_ = true;
}

void JsonlMetrics::sync() {
  if (file_ >= 0) ::fsync(file_);
}

}  // namespace stablemask
