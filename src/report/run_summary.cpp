#include "stablemask/report/run_summary.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "src/report/record.h"
#include "stablemask/base/error.h"

namespace stablemask {
namespace {

constexpr const char* kMetrics = "metrics.jsonl";

bool holds_metrics(const std::filesystem::path& folder) {
  std::error_code absent;
  return std::filesystem::is_regular_file(folder / kMetrics, absent);
}

/// The finite number `key` of a line.
std::optional<double> number(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  if (found == line.end() || !found->is_number()) return std::nullopt;
  const double value = found->get<double>();
  return std::isfinite(value) ? std::optional<double>(value) : std::nullopt;
}

int64_t whole(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

void add_line(const nlohmann::json& line, RunSummary& summary, std::vector<double>& rates) {
  ++summary.lines;
  summary.step = whole(line, "step");
  summary.tokens = whole(line, "tokens");
  summary.skipped = whole(line, "skipped");
  summary.seconds = number(line, "seconds").value_or(summary.seconds);
  // Runs of older versions have only the loss of the line's own step.
  const auto mean = number(line, "loss_mean");
  if (const auto loss = mean ? mean : number(line, "loss")) summary.loss = loss;
  if (const auto rate = number(line, "tokens_per_second")) rates.push_back(*rate);
  const auto valid = number(line, "valid_loss");
  if (valid && (!summary.best_valid_loss || *valid < *summary.best_valid_loss)) {
    summary.best_valid_loss = valid;
    summary.best_valid_word_ppl = number(line, "valid_word_ppl");
    summary.best_valid_step = summary.step;
  }
}

std::optional<double> median(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

std::vector<std::string> find_runs(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code failed;
  if (!fs::is_directory(folder, failed)) {
    throw DataError(folder + ": is no folder; name one that holds runs");
  }
  std::vector<std::string> runs;
  if (holds_metrics(folder)) runs.push_back(folder);
  fs::recursive_directory_iterator entry(folder, fs::directory_options::skip_permission_denied,
                                         failed);
  for (; !failed && entry != fs::recursive_directory_iterator(); entry.increment(failed)) {
    std::error_code gone;  // a run's temporary folders come and go
    if (!entry->is_directory(gone) || entry->is_symlink(gone)) continue;
    // Large runs keep hundreds of checkpoint folders, none of which is a run.
    if (entry->path().filename() == "checkpoints") entry.disable_recursion_pending();
    if (holds_metrics(entry->path())) runs.push_back(entry->path().string());
  }
  std::sort(runs.begin(), runs.end());
  return runs;
}

RunSummary summarize_run(const std::string& run) {
  const std::string path = run + "/" + kMetrics;
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw DataError(path + ": cannot be read: " + std::strerror(errno));
  RunSummary summary;
  std::vector<double> rates;
  for (std::string line; std::getline(file, line) && !file.eof();) {
    const nlohmann::json record = parse_record(line);
    if (record.is_null()) {
      ++summary.damaged;
    } else {
      add_line(record, summary, rates);
    }
  }
  if (summary.lines == 0) throw DataError(path + ": has no metrics yet");
  summary.tokens_per_second = median(std::move(rates));
  return summary;
}

}  // namespace stablemask
