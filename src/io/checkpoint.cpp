#include "stablemask/io/checkpoint.h"

#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "src/io/checkpoint_folders.h"
#include "src/io/file.h"
#include "src/io/manifest.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/io/base_checkpoint.h"
#include "stablemask/io/finite.h"
#include "stablemask/io/temporary_folder.h"

namespace stablemask {
namespace {

constexpr uint64_t kSlackBytes = uint64_t{1} << 20;  // manifest, folders, LATEST
constexpr uint64_t kHeaderBytesPerTensor = 256;      // a generous name and its offsets

uint64_t bytes_needed(const CheckpointContent& content) {
  uint64_t total = kSlackBytes + content.state_json.size() + content.config_json.size() +
                   content.tokenizer_model.size();
  for (const auto& [name, bytes] : content.tokenizer_companions) total += bytes.size();
  for (const auto* tensors : {&content.model, &content.optimizer, &content.trained}) {
    for (const auto& [name, view] : *tensors) total += view.bytes() + kHeaderBytesPerTensor;
  }
  for (const auto& [name, tensor] : content.streamed_model) {
    total += tensor.bytes() + kHeaderBytesPerTensor;
  }
  return total;
}

void check_free_space(const std::string& root, uint64_t needed) {
  const std::optional<uint64_t> free = free_space(root);
  // Where it is not known, a failing write shows the lack of space.
  if (!free || *free >= needed) return;
  throw CheckpointError(
      format("%s: not enough space for a checkpoint: %.1f MB needed, %.1f MB free; "
             "free some space or keep fewer checkpoints",
             root.c_str(), static_cast<double>(needed) / 1e6, static_cast<double>(*free) / 1e6));
}

FileDigest write_file(const std::string& path, const std::string& content) {
  HashedFile file(path);
  file.write(content);
  return file.finish();
}

/// Writes the files of the checkpoint `folder` to `place`, its temporary folder.
void write_files(const std::string& place, const std::string& folder,
                 const CheckpointContent& content) {
  Manifest manifest;
  manifest.step = content.step;
  const auto path = [&](const char* name) { return place + "/" + name; };
  const auto tensors = [&](const char* name, const std::map<std::string, TensorView>& map,
                           const std::map<std::string, std::string>& metadata = {}) {
    manifest.files[name] = write_safetensors(path(name), map, metadata);
  };
  std::map<std::string, std::string> weights;
  if (content.averaged) weights[kWeightsKey] = kAveragedWeights;
  const auto text = [&](const char* name, const std::string& bytes) {
    manifest.files[name] = write_file(path(name), bytes);
  };
  if (content.streamed_model.empty()) {
    tensors(kModelFile, content.model, weights);
  } else {
    manifest.files[kModelFile] =
        write_streamed_safetensors(path(kModelFile), content.streamed_model);
  }
  if (!content.optimizer.empty()) tensors(kOptimizerFile, content.optimizer);
  if (!content.trained.empty()) tensors(kTrainedFile, content.trained);
  text(kStateFile, content.state_json);
  text(kConfigFile, content.config_json);
  if (!content.tokenizer_model.empty()) {
    text(tokenizer_file_name(content.tokenizer_model), content.tokenizer_model);
  }
  for (const auto& [name, bytes] : content.tokenizer_companions) text(name.c_str(), bytes);
  if (content.base) text(kBaseFile, base_json(*content.base, folder));
  write_file(path(kManifestFile), render_manifest(manifest));
}

std::string without_slash(const std::string& path) {
  const std::filesystem::path normal = std::filesystem::path(path).lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).string();
}

void require_new(const std::string& folder) {
  std::error_code unknown;
  if (std::filesystem::symlink_status(folder, unknown).type() !=
      std::filesystem::file_type::not_found) {
    throw CheckpointError(folder + ": exists already; name a new folder");
  }
}

/// For work after the checkpoint is in place: its failure must not look like a failed save.
template <typename Action>
void warn_on_failure(const std::string& folder, Action action) {
  try {
    action();
  } catch (const CheckpointError& error) {
    log_warning(folder + " is saved, but " + error.what());
  }
}

}  // namespace

const char* tokenizer_file_name(const std::string& bytes) {
  return bytes.starts_with('{') ? kTokenizerJsonFile : kTokenizerFile;
}

std::string save_checkpoint(const std::string& root, const CheckpointContent& content,
                            const Retention& retention) {
  if (content.step < 0) throw CheckpointError(root + ": a checkpoint's step cannot be negative");
  create_folders(root, ExitCode::kCheckpoint);
  remove_leftovers(root);  // before the check: they take space
  check_free_space(root, bytes_needed(content));

  const std::string name = step_name(content.step);
  const std::string folder = root + "/" + name;
  {
    TemporaryFolder temporary(folder);
    write_files(temporary.path(), folder, content);
    temporary.publish();
  }
  warn_on_failure(folder, [&] { write_file_atomically(root + "/LATEST", name + "\n"); });
  if (retention.best > 0) {
    warn_on_failure(folder, [&] { name_best_checkpoint(root, retention.best); });
  }
  warn_on_failure(folder, [&] { apply_retention(root, retention, content.step); });
  return folder;
}

void write_checkpoint(const std::string& path, const CheckpointContent& content) {
  const std::string folder = without_slash(path);
  require_new(folder);
  const std::optional<int64_t> named =
      parse_step_name(std::filesystem::path(folder).filename().string());
  if (named && *named != content.step) {
    throw CheckpointError(format("%s: is the name of another step; the checkpoint is of step %lld",
                                 folder.c_str(), static_cast<long long>(content.step)));
  }
  check_free_space(parent_folder(folder), bytes_needed(content));
  TemporaryFolder temporary(folder);
  write_files(temporary.path(), folder, content);
  temporary.publish();
}

void strip_checkpoint(const std::string& from, const std::string& to,
                      const HashProgress& progress) {
  require_new(without_slash(to));  // before minutes of reading
  Checkpoint checkpoint = load_checkpoint(from, CheckpointParts::kWithoutOptimizer, progress);
  require_finite_weights(checkpoint);
  CheckpointContent content;
  content.step = checkpoint.step;
  content.model = checkpoint.model.tensors();
  content.averaged = checkpoint.averaged;
  content.state_json = std::move(checkpoint.state_json);
  content.config_json = std::move(checkpoint.config_json);
  content.tokenizer_model = std::move(checkpoint.tokenizer_model);
  content.tokenizer_companions = std::move(checkpoint.tokenizer_companions);
  content.base = recorded_base(checkpoint);
  write_checkpoint(to, content);
}

}  // namespace stablemask
