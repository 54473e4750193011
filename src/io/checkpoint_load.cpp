#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <future>
#include <memory>
#include <utility>

#include "src/io/checkpoint_folders.h"
#include "src/io/file.h"
#include "src/io/manifest.h"
#include "src/io/safetensors_header.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/io/checkpoint.h"

namespace stablemask {
namespace {

constexpr uint64_t kMaxManifestBytes = uint64_t{1} << 20;
/// Of state and config, which have kilobytes, and of the tokenizer, which has megabytes.
constexpr uint64_t kMaxJsonBytes = uint64_t{1} << 20, kMaxTokenizerBytes = uint64_t{256} << 20;

Manifest read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifestFile;
  Manifest manifest =
      parse_manifest(InputFile(path, ExitCode::kCheckpoint).text(kMaxManifestBytes), path);
  const std::filesystem::path normal = std::filesystem::path(folder).lexically_normal();
  const std::string name =
      (normal.has_filename() ? normal : normal.parent_path()).filename().string();
  const std::optional<int64_t> named = parse_step_name(name);
  if (named && *named != manifest.step) {
    throw CheckpointError(format("%s: is of step %lld, which is not the step in the folder's name",
                                 path.c_str(), static_cast<long long>(manifest.step)));
  }
  return manifest;
}

/// A file of a checkpoint. It is opened once: what was hashed is what is read, and a run that
/// removes the checkpoint meanwhile disturbs nothing.
class CheckpointFile {
 public:
  CheckpointFile(const std::string& folder, std::string name, const FileDigest& expected)
      : name_(std::move(name)), path_(folder + "/" + name_), expected_(expected) {
    try {
      file_ = std::make_unique<InputFile>(path_, ExitCode::kCheckpoint);
    } catch (const CheckpointError& error) {
      open_problem_ = error.what();
    }
  }

  const std::string& name() const { return name_; }
  uint64_t bytes() const { return expected_.bytes; }
  /// "" when there is none.
  std::string problem(std::atomic<uint64_t>& hashed) const {
    try {
      return file_ ? content_problem(hashed) : open_problem_;
    } catch (const CheckpointError& error) {
      return error.what();
    }
  }
  // Of a file without a problem:
  std::string text() const { return file_->text(expected_.bytes); }
  SafetensorsFile tensors() const { return SafetensorsFile::read(*file_, path_); }

 private:
  std::string content_problem(std::atomic<uint64_t>& hashed) const {
    if (file_->size() != expected_.bytes) {
      return format("%s: is damaged: %llu bytes instead of the %llu of the manifest", path_.c_str(),
                    static_cast<unsigned long long>(file_->size()),
                    static_cast<unsigned long long>(expected_.bytes));
    }
    const bool tensors = name_.ends_with(".safetensors");
    const bool json = name_ == kStateFile || name_ == kConfigFile;
    const uint64_t most = json ? kMaxJsonBytes : kMaxTokenizerBytes;
    if (!tensors && expected_.bytes > most) {
      return format("%s: is %llu bytes long; at most %llu are read", path_.c_str(),
                    static_cast<unsigned long long>(expected_.bytes),
                    static_cast<unsigned long long>(most));
    }
    if (digest_of(*file_, [&](uint64_t bytes) { hashed += bytes; }).sha256 != expected_.sha256) {
      return path_ + ": is damaged: its SHA-256 is not the one of the manifest";
    }
    if (tensors) read_safetensors_layout(*file_, path_, kSafetensorsMaxHeaderBytes);
    return "";
  }

  std::string name_, path_;
  FileDigest expected_;
  std::unique_ptr<InputFile> file_;
  std::string open_problem_;
};

std::vector<CheckpointFile> open_files(const std::string& folder, const Manifest& manifest) {
  std::vector<CheckpointFile> files;
  for (const auto& [name, digest] : manifest.files) files.emplace_back(folder, name, digest);
  return files;
}

/// Null: there is none.
const CheckpointFile* find(const std::vector<CheckpointFile>& files, const std::string& name) {
  const auto found =
      std::ranges::find_if(files, [&](const CheckpointFile& file) { return file.name() == name; });
  return found == files.end() ? nullptr : &*found;
}

/// Leaves the files in `manifest` that `parts` asks for; returns the one with Checkpoint::model.
const char* select_files(Manifest& manifest, CheckpointParts parts) {
  if (parts == CheckpointParts::kAll) return kModelFile;
  manifest.files.erase(kOptimizerFile);
  if (parts == CheckpointParts::kWithoutOptimizer || !manifest.files.contains(kTrainedFile)) {
    manifest.files.erase(kTrainedFile);
    return kModelFile;
  }
  manifest.files.erase(kModelFile);
  return kTrainedFile;
}

bool are_averaged(const SafetensorsFile& weights) {
  const auto found = weights.metadata().find(kWeightsKey);
  return found != weights.metadata().end() && found->second == kAveragedWeights;
}

/// Checks the files in parallel: hashing is slower than the disk.
std::vector<std::string> file_problems(const std::vector<CheckpointFile>& files,
                                       const HashProgress& progress) {
  constexpr auto kInterval = std::chrono::milliseconds(100);
  std::atomic<uint64_t> hashed{0};
  uint64_t total = 0;
  std::vector<std::future<std::string>> checks;
  for (const CheckpointFile& file : files) {
    total += file.bytes();
    checks.push_back(std::async([&file, &hashed] { return file.problem(hashed); }));
  }
  for (const std::future<std::string>& check : checks) {
    while (check.wait_for(kInterval) == std::future_status::timeout) {
      if (progress) progress(hashed, total);
    }
  }
  std::vector<std::string> problems;
  for (std::future<std::string>& check : checks) {
    std::string problem = check.get();
    if (!problem.empty()) problems.push_back(std::move(problem));
  }
  if (progress) progress(total, total);
  return problems;
}

}  // namespace

std::vector<std::string> verify_checkpoint(const std::string& folder,
                                           const HashProgress& progress) try {
  return file_problems(open_files(folder, read_manifest(folder)), progress);
} catch (const CheckpointError& error) {
  return {error.what()};
}

Checkpoint load_checkpoint(const std::string& folder, CheckpointParts parts,
                           const HashProgress& progress) {
  Manifest manifest = read_manifest(folder);
  const std::string model_sha256 = manifest.files.at(kModelFile).sha256;
  const std::string model_name = select_files(manifest, parts);
  const std::vector<CheckpointFile> files = open_files(folder, manifest);
  const std::vector<std::string> problems = file_problems(files, progress);
  if (!problems.empty()) {
    const size_t more = problems.size() - 1;
    throw CheckpointError(problems[0] + (more ? format(" (and %zu more files)", more) : ""));
  }

  const auto text = [&](const char* name) {
    const CheckpointFile* file = find(files, name);
    return file ? file->text() : std::string();
  };
  const auto tensors = [&](const std::string& name) -> std::optional<SafetensorsFile> {
    const CheckpointFile* file = find(files, name);
    if (!file) return std::nullopt;
    return file->tensors();
  };
  auto optimizer = std::async([&] { return tensors(kOptimizerFile); });
  SafetensorsFile model = *tensors(model_name);
  const bool averaged = are_averaged(model);
  if (averaged && parts == CheckpointParts::kTrainedWeights) {
    throw CheckpointError(folder +
                          ": holds averaged weights alone, without the trained ones (`checkpoint "
                          "strip` leaves them out); take the averaged ones, or the checkpoint of "
                          "the run");
  }
  std::map<std::string, std::string> companions;
  for (const char* name : kTokenizerCompanions) {
    if (find(files, name) != nullptr) companions[name] = text(name);
  }
  std::string tokenizer = text(kTokenizerFile);
  if (tokenizer.empty()) {
    tokenizer = text(kTokenizerJsonFile);
  } else if (find(files, kTokenizerJsonFile) != nullptr) {
    companions[kTokenizerJsonFile] = text(kTokenizerJsonFile);
  }
  return {folder,
          manifest.step,
          std::move(model),
          optimizer.get(),
          model_name == kTrainedFile ? std::nullopt : tensors(kTrainedFile),
          folder + "/" + model_name,
          averaged,
          text(kStateFile),
          text(kConfigFile),
          std::move(tokenizer),
          std::move(companions),
          text(kBaseFile),
          model_sha256};
}

std::string read_checkpoint_config(const std::string& folder) {
  const Manifest manifest = read_manifest(folder);
  const CheckpointFile file(folder, kConfigFile, manifest.files.at(kConfigFile));
  std::atomic<uint64_t> hashed{0};
  const std::string problem = file.problem(hashed);
  if (!problem.empty()) throw CheckpointError(problem);
  return file.text();
}

std::string read_checkpoint_model_sha256(const std::string& folder) {
  return read_manifest(folder).files.at(kModelFile).sha256;
}

void with_checkpoint(const std::string& path,
                     const std::function<void(const std::string& folder)>& read) {
  constexpr int kMaxAttempts = 100;  // for a file system that lists what it cannot open
  for (int attempt = 1;; ++attempt) {
    const std::string folder = resolve_checkpoint(path);
    try {
      return read(folder);
    } catch (const CheckpointError&) {
      std::error_code ignored;
      const bool gone = !std::filesystem::exists(folder + "/" + kManifestFile, ignored);
      if (!gone || folder == path || attempt == kMaxAttempts) throw;
    }
  }
}

std::optional<Checkpoint> load_latest_checkpoint(const std::string& root, CheckpointParts parts,
                                                 const HashProgress& progress) {
  std::vector<CheckpointSummary> found = list_checkpoints(root);
  const auto has_other_name = [](const CheckpointSummary& summary) {
    return !parse_step_name(std::filesystem::path(summary.folder).filename().string());
  };
  std::erase_if(found, has_other_name);
  if (found.empty()) return std::nullopt;
  std::reverse(found.begin(), found.end());
  for (const CheckpointSummary& summary : found) {
    try {
      return load_checkpoint(summary.folder, parts, progress);
    } catch (const NewerVersionError&) {
      throw;
    } catch (const CheckpointError& error) {
      log_warning(std::string(error.what()) + "; the checkpoint before it is tried");
    }
  }
  throw CheckpointError(root + ": none of the " + std::to_string(found.size()) +
                        " checkpoints is sound; move the folder away to start anew");
}

}  // namespace stablemask
