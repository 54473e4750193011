#include "tests/reliability/storage_state.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "src/report/tensorboard_event.h"
#include "src/report/tfrecord.h"
#include "stablemask/base/error.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

bool is_step_name(const std::string& name) {
  static const std::regex pattern("step-[0-9]{8}");
  return std::regex_match(name, pattern);
}

}  // namespace

std::string checkpoint_problem(const std::string& root, int64_t at_least, int64_t& newest,
                               const std::function<bool(const Checkpoint&)>& has_right_bits) try {
  newest = 0;
  if (fs::exists(root)) {
    for (const CheckpointSummary& summary : list_checkpoints(root)) {
      if (!is_step_name(fs::path(summary.folder).filename())) continue;
      for (const std::string& problem : verify_checkpoint(summary.folder)) return problem;
    }
    if (const std::optional<Checkpoint> found = load_latest_checkpoint(root)) {
      newest = found->step;
      if (!has_right_bits(*found)) return found->folder + " has other bits than were saved";
    }
    const std::string latest = read_bytes(root + "/LATEST");
    const bool names_step = latest.size() == 14 && is_step_name(latest.substr(0, 13));
    if (fs::exists(root + "/LATEST") && !names_step) return "LATEST holds \"" + latest + "\"";
  }
  if (newest >= at_least) return "";
  return "the newest checkpoint is of step " + std::to_string(newest) + ", not of " +
         std::to_string(at_least);
} catch (const Error& error) {
  return error.what();
}

std::string best_problem(const std::string& folder, const std::set<int64_t>& steps) try {
  const Checkpoint best = load_checkpoint(resolve_checkpoint(folder + "/best"));
  if (steps.contains(best.step) && is_tiny_checkpoint(best)) return "";
  return "BEST names step " + std::to_string(best.step);
} catch (const Error& error) {
  return error.what();
}

std::vector<int64_t> steps_of_lines(const std::string& path) {
  std::vector<int64_t> steps;
  std::istringstream lines(read_bytes(path));
  for (std::string line; std::getline(lines, line) && !lines.eof();) {
    const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    steps.push_back(record.is_object() ? record.value("step", int64_t{-1}) : -1);
  }
  return steps;
}

std::vector<int64_t> steps_of_events(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::vector<int64_t> steps;
  for (const std::string& path : files) {
    const std::string bytes = read_bytes(path);
    TfrecordReader reader(bytes);
    while (const auto payload = reader.next()) {
      const auto event = decode_event(*payload);
      if (!event || !event->scalars.empty()) steps.push_back(event ? event->step : -1);
    }
  }
  return steps;
}

std::vector<std::string> leftovers(const std::string& folder) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    std::string stem;
    if (is_temporary_name(entry.path().filename(), stem)) found.push_back(entry.path());
  }
  return found;
}

}  // namespace stablemask
