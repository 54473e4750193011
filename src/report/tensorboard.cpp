#include "stablemask/report/tensorboard.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>
#include <vector>

#include "src/report/append_file.h"
#include "src/report/tensorboard_event.h"
#include "src/report/tfrecord.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/report/samples.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigTag = "config";
// TensorBoard reads files whose names contain "tfevents", those of one folder in order of name.
constexpr std::string_view kPrefix = "events.out.tfevents.", kSuffix = ".stablemask";
constexpr size_t kTimeDigits = 10;
constexpr size_t kTextColumns = 100;

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string file_name(int64_t time) {
  return std::string(kPrefix) +
         format("%0*lld", static_cast<int>(kTimeDigits), static_cast<long long>(time)) +
         std::string(kSuffix);
}

/// The time in a name that file_name made; 0: it did not.
int64_t time_in(const std::string& name) {
  if (name.size() != kPrefix.size() + kTimeDigits + kSuffix.size()) return 0;
  const std::string digits = name.substr(kPrefix.size(), kTimeDigits);
  const bool number =
      std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c); });
  return number && file_name(std::stoll(digits)) == name ? std::stoll(digits) : 0;
}

/// The event files of earlier processes in a folder.
struct Found {
  int64_t newest = 0;             ///< time in its name; 0: there is none
  std::vector<std::string> rest;  ///< names of older ones and of unfinished temporary files
};

Found find_files(const std::string& folder) {
  Found found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::string stem;
    if (is_temporary_name(name, stem) && time_in(stem) > 0) found.rest.push_back(name);
    const int64_t time = time_in(name);
    if (time == 0) continue;
    if (const int64_t older = std::min(time, found.newest); older > 0) {
      found.rest.push_back(file_name(older));
    }
    found.newest = std::max(time, found.newest);
  }
  if (error) throw CheckpointError(folder + ": cannot be listed: " + error.message());
  return found;
}

/// What remains of an event file.
struct Kept {
  std::string bytes;
  bool whole = false;  ///< all of the file
  std::string config;  ///< the last one recorded, as Markdown; "": none
};

Kept kept_of(const std::string& path, int64_t last_step) {
  const InputFile input(path, ExitCode::kCheckpoint);
  const std::string file = input.text(std::numeric_limits<uint64_t>::max());
  Kept kept;
  TfrecordReader reader(file);
  for (size_t begin = 0; const auto payload = reader.next(); begin = reader.offset()) {
    const std::optional<TensorboardEvent> event = decode_event(*payload);
    if (!event || event->step > last_step) continue;
    kept.bytes.append(file, begin, reader.offset() - begin);
    for (const auto& text : event->texts) {
      if (text.tag == kConfigTag) kept.config = text.markdown;
    }
  }
  if (reader.offset() < file.size()) {
    log_warning(format("%s: damaged or incomplete from byte %zu on; the rest is left out",
                       path.c_str(), reader.offset()));
  }
  kept.whole = !kept.bytes.empty() && kept.bytes.size() == file.size();
  return kept;
}

/// A code block of Markdown; its fence is longer than any that `text` has.
std::string code_block(const std::string& text, const char* language) {
  size_t longest = 0, run = 0;
  for (const char c : text) {
    run = c == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  const std::string fence(std::max<size_t>(3, longest + 1), '`');
  return fence + language + "\n" + text + (text.ends_with('\n') ? "" : "\n") + fence;
}

TensorboardEvent event_of(int64_t step) {
  TensorboardEvent event;
  event.wall_time = now();
  event.step = step;
  return event;
}

/// A new file's first record.
std::string version_record() {
  TensorboardEvent event = event_of(0);
  event.file_version = kEventFileVersion;
  return tfrecord(encode_event(event));
}

}  // namespace

TensorboardMetrics::TensorboardMetrics(std::string folder, std::string config_json)
    : folder_(std::move(folder)), config_(code_block(config_json, "json")) {}

TensorboardMetrics::~TensorboardMetrics() = default;

void TensorboardMetrics::cut_after(int64_t step) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) throw CheckpointError(folder_ + ": cannot be created: " + error.message());
  Found found = find_files(folder_);
  Kept kept;
  if (found.newest > 0) kept = kept_of(folder_ + "/" + file_name(found.newest), step);
  std::string name = file_name(found.newest);
  if (!kept.whole) {
    if (found.newest > 0) found.rest.push_back(name);
    name = file_name(std::max(static_cast<int64_t>(now()), found.newest + 1));
    write_file_atomically(folder_ + "/" + name, kept.bytes.empty() ? version_record() : kept.bytes);
  }
  for (const std::string& old : found.rest) {
    if (!fs::remove(folder_ + "/" + old, error) && error) {
      log_warning(folder_ + "/" + old + ": cannot be removed: " + error.message() +
                  "; TensorBoard shows it too");
    }
  }
  file_ = std::make_unique<AppendFile>(folder_ + "/" + name);
  if (kept.config == config_) return;
  TensorboardEvent event = event_of(kept.config.empty() ? 0 : step);
  event.texts.push_back({kConfigTag, config_});
  append(std::move(event));
}

void TensorboardMetrics::record(const StepMetrics& metrics) {
  TensorboardEvent event = event_of(metrics.step);
  for (const MetricField& field : metric_fields()) {
    if (field.tag == nullptr) continue;
    const MetricValue value = field.value(metrics);
    if (const auto* whole = std::get_if<int64_t>(&value)) {
      event.scalars.push_back({field.tag, static_cast<float>(*whole)});
    }
    if (const auto* number = std::get_if<double>(&value)) {
      event.scalars.push_back({field.tag, static_cast<float>(*number)});
    }
  }
  append(std::move(event));
}

void TensorboardMetrics::sample(const Sample& sample) {
  TensorboardEvent event = event_of(sample.step);
  const std::string text = with_line_breaks(
      without_control_characters(sample.prompt + sample.continuation), kTextColumns);
  event.texts.push_back(
      {format("samples/prompt %lld", static_cast<long long>(sample.number)), code_block(text, "")});
  append(std::move(event));
}

void TensorboardMetrics::append(TensorboardEvent event) {
  file_->append(tfrecord(encode_event(event)), event.step);
}

void TensorboardMetrics::sync() {
  if (file_) file_->sync();
}

}  // namespace stablemask
