#include "src/io/checkpoint_folders.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <tuple>

#include "src/io/file.h"
#include "src/io/manifest.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStepPrefix = "step-";
constexpr const char* kBestFile = "BEST";

/// Calls `visit` with each entry; a folder that does not exist has none.
template <typename Visit>
void for_each_entry(const std::string& folder, Visit visit) {
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) visit(entry->path());
  if (error && error != std::errc::no_such_file_or_directory) {
    fail_io(folder, "cannot be listed", error.value());
  }
}

uint64_t bytes_in(const std::string& folder) {
  uint64_t total = 0;
  for_each_entry(folder, [&](const fs::path& path) {
    std::error_code error;
    const uintmax_t size = fs::file_size(path, error);
    if (!error) total += size;
  });
  return total;
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// Throws CheckpointError when that cannot be told: a checkpoint that is passed over in silence
/// would be trained again.
bool is_folder(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  if (type == fs::file_type::none) fail_io(path.string(), "cannot be examined", error.value());
  return type == fs::file_type::directory;
}

bool has_complete_checkpoint(const std::string& path) try {
  const std::vector<CheckpointSummary> found = list_checkpoints(checkpoint_root(path));
  return std::any_of(found.begin(), found.end(), [](const auto& one) { return one.complete; });
} catch (const CheckpointError&) {
  return false;  // of another user
}

/// Names of the run folders in `path`, sorted; at most `limit`, then "…".
std::vector<std::string> runs_in(const std::string& path, size_t limit) {
  std::vector<std::string> names;
  for_each_entry(path, [&](const fs::path& entry) {
    std::error_code ignored;
    if (fs::is_directory(entry, ignored) && has_complete_checkpoint(entry.string())) {
      names.push_back(entry.filename().string());
    }
  });
  std::sort(names.begin(), names.end());
  if (names.size() > limit) {
    names.resize(limit);
    names.push_back("…");
  }
  return names;
}

std::vector<CheckpointSummary> complete_checkpoints(const std::string& root) {
  std::vector<CheckpointSummary> found = list_checkpoints(root);
  std::erase_if(found, [](const CheckpointSummary& summary) { return !summary.complete; });
  return found;
}

/// The step that BEST names; nullopt: none.
std::optional<int64_t> named_best(const std::string& root) {
  std::string name;
  std::getline(std::ifstream(root + "/" + kBestFile), name);
  return parse_step_name(name);
}

/// Those of `complete`, ascending by step, that `retention` does not keep after the save of step
/// `written`.
std::vector<CheckpointSummary> superseded(std::vector<CheckpointSummary> complete,
                                          const Retention& retention, int64_t written) {
  const auto keep_last = static_cast<size_t>(std::max<int64_t>(retention.keep_last, 1));
  complete.resize(complete.size() - std::min(complete.size(), keep_last));
  std::erase_if(complete, [&](const CheckpointSummary& summary) {
    const int64_t every = retention.keep_every;
    return summary.step == written || summary.step == retention.best ||
           (every > 0 && summary.step % every == 0);
  });
  return complete;
}

/// The checkpoint that `path`, RUN/best, means; nullopt: it is no such path. A run that is training
/// names another one before it removes the one named here.
std::optional<std::string> best_of_run(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  const fs::path named = normal.has_filename() ? normal : normal.parent_path();
  if (named.filename() != "best") return std::nullopt;
  const std::string run = named.has_parent_path() ? named.parent_path().string() : ".";
  if (!is_there(run)) return std::nullopt;
  const std::string root = checkpoint_root(run);
  const std::optional<int64_t> step = named_best(root);
  if (!step) {
    throw CheckpointError(path + ": the run has named no best checkpoint; train it with " +
                          "train.keep_best, or name " + run + " for its newest one");
  }
  const std::string name = step_name(*step);
  if (!is_there(fs::path(root) / name / kManifestFile)) {
    throw CheckpointError(path + ": means " + name + ", which is not there any more; name " + run +
                          " for the newest one");
  }
  return root + "/" + name;
}

void remove_or_warn(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) log_warning(path + ": cannot be removed: " + error.message());
}

}  // namespace

std::string step_name(int64_t step) {
  return format("%s%08lld", kStepPrefix, static_cast<long long>(step));
}

std::optional<int64_t> parse_step_name(const std::string& name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  const char* begin = name.data() + std::char_traits<char>::length(kStepPrefix);
  const char* end = name.data() + name.size();
  int64_t step = 0;
  const auto [stop, error] = std::from_chars(begin, end, step);
  if (error != std::errc() || stop != end || step_name(step) != name) return std::nullopt;
  return step;
}

std::vector<CheckpointSummary> list_checkpoints(const std::string& root) {
  std::vector<CheckpointSummary> found;
  for_each_entry(root, [&](const fs::path& path) {
    const std::string name = path.filename().string();
    std::string stem;
    const bool temporary = is_temporary_name(name, stem);
    const std::optional<int64_t> step = parse_step_name(temporary ? stem : name);
    if (!step || !is_folder(path)) return;
    if (temporary && has_living_writer(path.string())) return;
    const bool complete = !temporary && is_there(path / kManifestFile);
    found.push_back({path.string(), *step, complete, bytes_in(path.string())});
  });
  std::sort(found.begin(), found.end(), [](const CheckpointSummary& a, const CheckpointSummary& b) {
    return std::tie(a.step, a.folder) < std::tie(b.step, b.folder);
  });
  return found;
}

std::string checkpoint_root(const std::string& path) {
  const fs::path inner = fs::path(path) / "checkpoints";
  std::error_code ignored;
  return fs::is_directory(inner, ignored) ? inner.string() : path;
}

void name_best_checkpoint(const std::string& root, int64_t step) {
  const std::string name = step_name(step);
  if (named_best(root) == step) return;
  const fs::path manifest = fs::path(root) / name / kManifestFile;
  std::error_code error;
  const bool complete = fs::exists(manifest, error);
  if (error) fail_io(manifest.string(), "cannot be examined", error.value());
  if (!complete) return;
  write_file_atomically(root + "/" + kBestFile, name + "\n", ExitCode::kCheckpoint);
}

std::string resolve_checkpoint(const std::string& path) {
  if (!is_there(path)) {
    if (const auto best = best_of_run(path)) return *best;
    throw CheckpointError(path + ": there is no such folder; check the path");
  }
  if (is_there(fs::path(path) / kManifestFile)) return path;
  // A listing may miss both the checkpoint that a run saves meanwhile and the one that it removes.
  constexpr int kListings = 10;
  for (int listing = 0; listing < kListings; ++listing) {
    const std::vector<CheckpointSummary> complete = complete_checkpoints(checkpoint_root(path));
    if (!complete.empty()) return complete.back().folder;
  }
  const std::vector<std::string> runs = runs_in(path, 20);
  if (!runs.empty()) throw CheckpointError(path + ": holds runs, name one: " + join(runs, ", "));
  throw CheckpointError(path + ": holds no complete checkpoint (a step-N folder with " +
                        kManifestFile + ")");
}

void remove_leftovers(const std::string& root) {
  std::vector<std::string> leftovers;
  for_each_entry(root, [&](const fs::path& path) {
    std::string stem;
    const bool ours = is_temporary_name(path.filename().string(), stem) &&
                      (parse_step_name(stem) || stem == "LATEST" || stem == kBestFile);
    if (ours && !has_living_writer(path.string())) leftovers.push_back(path.string());
  });
  for (const std::string& path : leftovers) remove_or_warn(path);
}

std::vector<std::string> removed_by_next_save(const std::string& root, const Retention& retention) {
  std::vector<CheckpointSummary> complete = complete_checkpoints(root);
  if (complete.empty()) return {};
  const int64_t next = complete.back().step + 1;
  complete.push_back({root + "/" + step_name(next), next, true, 0});
  std::vector<std::string> names;
  for (const CheckpointSummary& summary : superseded(std::move(complete), retention, next)) {
    names.push_back(fs::path(summary.folder).filename().string());
  }
  return names;
}

void apply_retention(const std::string& root, const Retention& retention, int64_t written) {
  // Renamed to temporary names first, and that made durable, then removed: an interruption never
  // leaves part of a checkpoint under a final name.
  // What BEST names, too, when it could not be written anew.
  const std::optional<int64_t> best = retention.best > 0 ? named_best(root) : std::nullopt;
  std::vector<std::string> condemned;
  for (const CheckpointSummary& summary :
       superseded(complete_checkpoints(root), retention, written)) {
    if (summary.step == best) continue;
    std::string temporary = temporary_name(summary.folder);
    std::error_code error;
    fs::rename(summary.folder, temporary, error);
    if (error) {
      log_warning(summary.folder + ": cannot be removed: " + error.message());
    } else {
      condemned.push_back(std::move(temporary));
    }
  }
  if (condemned.empty()) return;
  sync_folder(root, ExitCode::kCheckpoint);
  for (const std::string& path : condemned) remove_or_warn(path);
}

}  // namespace stablemask
