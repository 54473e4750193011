// Input: a byte that selects what is read, a byte for the manifest's step, then changes of a run
// folder with the checkpoints of steps 7 and 9: a byte for file, action, folder and moment, a
// length of two bytes, and as many bytes.
#include "stablemask/io/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "src/io/manifest.h"
#include "stablemask/base/sha256.h"
#include "tests/fuzz/harness.h"

namespace stablemask::fuzz {
namespace {

using Files = std::map<std::string, std::string>;  // path in the run folder → content

const char* const kFolders[] = {"step-00000007", "step-00000009"};
const char* const kNames[] = {kModelFile,     kOptimizerFile, kStateFile,  kConfigFile,
                              kTokenizerFile, kManifestFile,  "other.bin", "../LATEST"};

std::string root() { return scratch_folder() + "/run"; }

std::string tensors(const std::string& name) {
  const float values[2] = {1, 2};
  const std::string path = scratch_folder() + "/made";
  std::remove(path.c_str());
  write_safetensors(path, {{name, {ElementType::kF32, {2}, values}}});
  return read_file(path);
}

Files sound_files() {
  const Files files = {{kModelFile, tensors("w")},
                       {kOptimizerFile, tensors("m")},
                       {kStateFile, "{\"step\": 9}\n"},
                       {kConfigFile, "{}\n"},
                       {kTokenizerFile, "tokenizer"}};
  Files both;
  for (const std::string folder : kFolders) {
    for (const auto& [name, content] : files) both[folder + "/" + name] = content;
  }
  return both;
}

/// A manifest of what the folder has.
std::string manifest_of(const Files& files, const std::string& folder, int64_t step) {
  Manifest manifest;
  manifest.step = step;
  for (const auto& [path, content] : files) {
    const std::string name = path.substr(path.find('/') + 1);
    if (!path.starts_with(folder) || name == kManifestFile) continue;
    manifest.files[name] = {content.size(), sha256_hex(content.data(), content.size())};
  }
  return render_manifest(manifest);
}

struct Change {
  uint8_t what = 0;
  std::string_view bytes;
  bool after_sealing() const { return (what & 64) != 0; }
};

void apply(const Change& change, Files& files) {
  const std::string name = kNames[change.what & 7];
  const std::string path =
      name == "../LATEST" ? "LATEST" : std::string(kFolders[change.what >> 5 & 1]) + "/" + name;
  Numbers numbers(change.bytes);
  switch (change.what >> 3 & 3) {
    case 0:
      files[path] = change.bytes;
      break;
    case 1:
      files.erase(path);
      break;
    case 2: {
      std::string& content = files[path];
      const size_t at = numbers.integer(2) % (content.size() + 1);
      const std::string_view bytes = numbers.rest();
      content.replace(at, bytes.size(), bytes);
      break;
    }
    default:
      files[path].resize(numbers.integer(2) % 512);
  }
}

Files read_files(Numbers& numbers) {
  static const Files sound = sound_files();
  Files files = sound;
  const auto other_step = static_cast<int8_t>(numbers.byte());
  std::vector<Change> changes;
  while (!numbers.empty()) {
    const uint8_t what = numbers.byte();
    changes.push_back({what, numbers.take(numbers.integer(2))});
  }
  for (const Change& change : changes) {
    if (!change.after_sealing()) apply(change, files);
  }
  const auto seal = [&](const std::string& folder, int64_t step) {
    // A change replaced it.
    if (!files.count(folder + "/" + kManifestFile)) {
      files[folder + "/" + kManifestFile] = manifest_of(files, folder, step);
    }
  };
  seal(kFolders[0], 7);
  seal(kFolders[1], other_step == 0 ? 9 : other_step);
  for (const Change& change : changes) {
    if (change.after_sealing()) apply(change, files);
  }
  return files;
}

/// Makes the run folder have these files; writes only what differs from the last call.
void put_on_disk(const Files& files) {
  static Files there;
  if (there.empty()) {
    for (const std::string folder : kFolders) {
      std::filesystem::create_directories(root() + "/" + folder);
    }
  }
  for (const auto& [path, content] : there) {
    if (!files.count(path)) std::remove((root() + "/" + path).c_str());
  }
  for (const auto& [path, content] : files) {
    const auto old = there.find(path);
    if (old == there.end() || old->second != content) write_file(root() + "/" + path, content);
  }
  there = files;
}

void check_content(const Checkpoint& checkpoint, const std::string& folder, const Files& files) {
  const auto content = [&](const char* name) {
    const auto file = files.find(folder + "/" + name);
    return file == files.end() ? std::string() : file->second;
  };
  require(checkpoint.state_json == content(kStateFile), "the state is the file's");
  require(checkpoint.config_json == content(kConfigFile), "the config is the file's");
  const std::string& tokenizer = checkpoint.tokenizer_model;
  require(tokenizer.empty() || tokenizer == content(kTokenizerFile), "the tokenizer is the file's");
  size_t bytes = 0;
  for (const auto& [name, view] : checkpoint.model.tensors()) bytes += view.bytes();
  require(bytes <= content(kModelFile).size(), "the tensors are the file's");
}

/// Whether the checkpoint loads; it then has what the files have.
bool loads(const std::string& folder, const Files& files, CheckpointParts parts) {
  return accepted<CheckpointError>(
      [&] { check_content(load_checkpoint(root() + "/" + folder, parts), folder, files); });
}

void check_latest(const Files& files) {
  const bool older = loads(kFolders[0], files, CheckpointParts::kAll);
  const bool newer = loads(kFolders[1], files, CheckpointParts::kAll);
  const bool found = accepted<CheckpointError>([&] {
    const std::optional<Checkpoint> latest = load_latest_checkpoint(root());
    require(latest.has_value(), "a folder with checkpoints has a latest one");
    const std::string folder = kFolders[newer ? 1 : 0];
    require(latest->folder == root() + "/" + folder, "it is the newest that loads");
    check_content(*latest, folder, files);
  });
  require(!found || older || newer, "what does not load is not the latest");
  require(found || !newer, "the newest one is not passed over");
}

void run(std::string_view input) {
  Numbers numbers(input);
  const uint8_t what = numbers.byte();
  const Files files = read_files(numbers);
  put_on_disk(files);
  const std::string folder = root() + "/" + kFolders[1];
  switch (what % 4) {
    case 0:
      return check_latest(files);
    case 1: {
      uint64_t hashed = 0;
      const auto progress = [&](uint64_t done, uint64_t total) {
        require(done <= total, "no more is hashed than there is");
        hashed = done;
      };
      const std::vector<std::string> problems = verify_checkpoint(folder, progress);
      for (const std::string& problem : problems) require_message(problem, true);
      require(problems.empty() == loads(kFolders[1], files, CheckpointParts::kAll),
              "what verifies loads");
      return;
    }
    case 2:
      loads(kFolders[1], files, CheckpointParts::kWithoutOptimizer);
      accepted<CheckpointError>([&] {
        require(
            read_checkpoint_config(folder) == files.at(std::string(kFolders[1]) + "/config.json"),
            "the config is the file's");
      });
      return;
    default:
      accepted<CheckpointError>([&] { resolve_checkpoint(root()); });
      accepted<CheckpointError>([&] { resolve_checkpoint(folder); });
      for (const CheckpointSummary& one : list_checkpoints(root())) {
        require(one.step == 7 || one.step == 9, "folders are named by their step");
      }
      removed_by_next_save(root(), {.keep_last = 1, .keep_every = what >> 2});
  }
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
