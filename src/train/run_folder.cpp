#include "src/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/dist/agreement.h"

namespace stablemask {

RunFolder::RunFolder(const std::string& path, std::shared_ptr<dist::Group> group)
    : path_(path), group_(std::move(group)) {
  if (!owner()) return;
  made_folders_ = create_folders(path_, ExitCode::kCheckpoint);
  // A run that is not kept removes its lock file. A process that opened it just before has then
  // locked a file that no longer has a name, which excludes nobody.
  do {
    if (lock_ >= 0) ::close(lock_);
    open_lock();
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
      const int reason = errno;
      ::close(lock_);
      if (reason == EWOULDBLOCK) {
        throw ConfigError(path +
                          ": another process trains in this run folder; wait for it, stop it or "
                          "choose another train.out");
      }
      throw CheckpointError(lock_path() + ": cannot be locked: " + std::strerror(reason));
    }
  } while (!lock_is_named());
}

RunFolder::~RunFolder() {
  if (!owner()) return;
  if (!kept_) {
    std::error_code ignored;  // a folder that is not empty stays
    if (made_lock_ && lock_is_named()) std::filesystem::remove(lock_path(), ignored);
    for (const std::string& folder : made_folders_) std::filesystem::remove(folder, ignored);
  }
  ::close(lock_);
}

void RunFolder::keep(const std::string& config_json) {
  if (!owner()) return;
  write_file_atomically(path_ + "/config.json", config_json, ExitCode::kCheckpoint);
  kept_ = true;
}

void RunFolder::open_lock() {
  const auto open_with = [&](int flags) {
    return ::open(lock_path().c_str(), O_RDWR | O_CREAT | O_CLOEXEC | flags, 0644);
  };
  lock_ = open_with(O_EXCL);
  made_lock_ = lock_ >= 0;
  if (!made_lock_) lock_ = open_with(0);
  if (lock_ < 0) {
    throw CheckpointError(lock_path() + ": cannot be made: " + std::strerror(errno));
  }
}

/// Whether the file that is locked is still the one in the folder.
bool RunFolder::lock_is_named() const {
  struct stat held {};
  struct stat named {};
  return ::fstat(lock_, &held) == 0 && ::stat(lock_path().c_str(), &named) == 0 &&
         held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

void RunFolder::require_held() const {
  std::string problem;
  if (owner() && !lock_is_named()) {
    problem = lock_path() +
              ": was removed or replaced, or the run folder was removed or renamed, while the run "
              "trained there; nothing more is written, because another process may train there now";
  }
  if (dist::any_failed(*group_, problem)) throw CheckpointError(problem);
}

std::optional<Checkpoint> RunFolder::find_resume(const RunOptions& options,
                                                 const HashProgress& progress) const {
  std::optional<Checkpoint> found;
  if (owner()) found = choose_resume(options, progress);
  const std::string chosen = dist::text_of_first(*group_, found ? found->folder : "");
  if (!owner() && !chosen.empty()) {
    found = load_checkpoint(chosen, CheckpointParts::kAll, progress);
  }
  return found;
}

std::optional<Checkpoint> RunFolder::choose_resume(const RunOptions& options,
                                                   const HashProgress& progress) const {
  if (options.resume == ResumePolicy::kAuto) {
    return load_latest_checkpoint(checkpoints(), CheckpointParts::kAll, progress);
  }

  std::vector<CheckpointSummary> complete;
  for (CheckpointSummary& summary : list_checkpoints(checkpoints())) {
    if (summary.complete) complete.push_back(std::move(summary));
  }
  if (options.resume == ResumePolicy::kNever) {
    if (complete.empty()) return std::nullopt;
    throw CheckpointError(
        path_ + ": holds " + std::to_string(complete.size()) +
        " checkpoints that a fresh run would overwrite; resume, move them away or "
        "choose another train.out");
  }
  Checkpoint chosen =
      load_checkpoint(resolve_checkpoint(options.resume_folder), CheckpointParts::kAll, progress);
  if (!complete.empty() && complete.back().step > chosen.step) {
    throw CheckpointError(format(
        "%s: is newer than step %lld of %s, and going on from there would overwrite it; move it "
        "away or choose another train.out",
        complete.back().folder.c_str(), static_cast<long long>(chosen.step),
        chosen.folder.c_str()));
  }
  return chosen;
}

}  // namespace stablemask
