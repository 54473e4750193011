#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <future>

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

/// The problem of one file; "" when there is none.
std::string file_problem(const std::string& folder, const std::string& name,
                         const FileDigest& expected, std::atomic<uint64_t>& hashed) try {
  const std::string path = folder + "/" + name;
  const InputFile file(path, ExitCode::kCheckpoint);
  if (file.size() != expected.bytes) {
    return format("%s: is damaged: %llu bytes instead of the %llu of the manifest", path.c_str(),
                  static_cast<unsigned long long>(file.size()),
                  static_cast<unsigned long long>(expected.bytes));
  }
  if (digest_of(file, [&](uint64_t bytes) { hashed += bytes; }).sha256 != expected.sha256) {
    return path + ": is damaged: its SHA-256 is not the one of the manifest";
  }
  if (name.ends_with(".safetensors")) {
    read_safetensors_layout(file, path, kSafetensorsMaxHeaderBytes);
  }
  return "";
} catch (const CheckpointError& error) {
  return error.what();
}

/// Checks the files in parallel: hashing is slower than the disk.
std::vector<std::string> file_problems(const std::string& folder, const Manifest& manifest,
                                       const HashProgress& progress) {
  constexpr auto kInterval = std::chrono::milliseconds(100);
  std::atomic<uint64_t> hashed{0};
  uint64_t total = 0;
  std::vector<std::future<std::string>> checks;
  for (const auto& [name, digest] : manifest.files) {
    total += digest.bytes;
    checks.push_back(std::async([&folder, &name = name, &digest = digest, &hashed] {
      return file_problem(folder, name, digest, hashed);
    }));
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
  return file_problems(folder, read_manifest(folder), progress);
} catch (const CheckpointError& error) {
  return {error.what()};
}

Checkpoint load_checkpoint(const std::string& folder, CheckpointParts parts,
                           const HashProgress& progress) {
  Manifest manifest = read_manifest(folder);
  if (parts == CheckpointParts::kWithoutOptimizer) manifest.files.erase(kOptimizerFile);
  const std::vector<std::string> problems = file_problems(folder, manifest, progress);
  if (!problems.empty()) {
    const size_t more = problems.size() - 1;
    throw CheckpointError(problems[0] + (more ? format(" (and %zu more files)", more) : ""));
  }

  const auto path = [&](const char* name) { return folder + "/" + name; };
  const auto text = [&](const char* name) {
    const auto file = manifest.files.find(name);
    if (file == manifest.files.end()) return std::string();
    return InputFile(path(name), ExitCode::kCheckpoint).text(file->second.bytes);
  };
  std::future<std::optional<SafetensorsFile>> optimizer =
      std::async([&]() -> std::optional<SafetensorsFile> {
        if (manifest.files.count(kOptimizerFile) == 0) return std::nullopt;
        return SafetensorsFile::open(path(kOptimizerFile));
      });
  SafetensorsFile model = SafetensorsFile::open(path(kModelFile));
  return {folder,           manifest.step,     std::move(model),    optimizer.get(),
          text(kStateFile), text(kConfigFile), text(kTokenizerFile)};
}

std::string read_checkpoint_config(const std::string& folder) {
  const Manifest manifest = read_manifest(folder);
  const FileDigest& digest = manifest.files.at(kConfigFile);
  std::atomic<uint64_t> hashed{0};
  const std::string problem = file_problem(folder, kConfigFile, digest, hashed);
  if (!problem.empty()) throw CheckpointError(problem);
  return InputFile(folder + "/" + kConfigFile, ExitCode::kCheckpoint).text(digest.bytes);
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
