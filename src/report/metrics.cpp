#include "stablemask/report/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/io/checkpoint.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

/// The complete lines of steps up to `last_step`.
std::string kept_lines(const std::string& path, int64_t last_step) {
  std::ifstream file(path, std::ios::binary);
  std::string kept;
  for (std::string line; std::getline(file, line) && !file.eof();) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;
    if (json["step"].get<int64_t>() <= last_step) kept += line + "\n";
  }
  return kept;
}

}  // namespace

std::string metrics_line(const StepMetrics& metrics) {
  Json json;
  json["step"] = metrics.step;
  json["tokens"] = metrics.tokens;
  json["loss"] = number(metrics.loss);
  json["grad_norm"] = number(metrics.grad_norm);
  json["lr"] = number(metrics.lr);
  json["skipped"] = metrics.skipped;
  json["tokens_per_second"] = number(metrics.tokens_per_second);
  if (metrics.mfu) json["mfu"] = number(*metrics.mfu);
  json["peak_memory_bytes"] = metrics.peak_memory_bytes;
  json["seconds"] = number(metrics.seconds);
  if (metrics.valid_loss) json["valid_loss"] = number(*metrics.valid_loss);
  if (metrics.valid_word_ppl) json["valid_word_ppl"] = number(*metrics.valid_word_ppl);
  return json.dump();
}

MetricsLog::MetricsLog(const std::string& path, int64_t last_step) : path_(path) {
  const std::string kept = kept_lines(path, last_step);
  write_file_atomically(path, kept);
  file_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file_ < 0) throw CheckpointError(path + ": cannot be opened: " + std::strerror(errno));
  size_ = static_cast<int64_t>(kept.size());
}

MetricsLog::~MetricsLog() {
  if (file_ >= 0) ::close(file_);
}

void MetricsLog::append(const StepMetrics& metrics) {
  const std::string line = metrics_line(metrics) + "\n";
  ssize_t written;
  do {
    written = ::write(file_, line.data(), line.size());
  } while (written < 0 && errno == EINTR);
  if (written == static_cast<ssize_t>(line.size())) {
    size_ += written;
    return;
  }
  const int reason = written < 0 ? errno : ENOSPC;
  // Takes back half a line, so that the file stays readable.
  const bool restored = ::ftruncate(file_, size_) == 0;
  if (!warned_) {
    log_warning(path_ + ": step " + std::to_string(metrics.step) + " not recorded: " +
                std::strerror(reason) + (restored ? "" : "; the last line may be torn"));
  }
  warned_ = true;
}

void MetricsLog::sync() { ::fsync(file_); }

}  // namespace stablemask
