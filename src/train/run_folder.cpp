#include "src/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask {

RunFolder::RunFolder(const std::string& path) : path_(path) {
  std::error_code error;
  created_ = std::filesystem::create_directories(path, error);
  if (error) throw CheckpointError(path + ": the run folder cannot be made: " + error.message());
  const std::string lock_path = path + "/.lock";
  lock_ = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) {
    throw CheckpointError(lock_path + ": cannot be made: " + std::strerror(errno));
  }
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    ::close(lock_);
    if (reason == EWOULDBLOCK) {
      throw ConfigError(path +
                        ": another process trains in this run folder; wait for it, stop it or "
                        "choose another train.out");
    }
    throw CheckpointError(lock_path + ": cannot be locked: " + std::strerror(reason));
  }
}

RunFolder::~RunFolder() {
  if (created_) {
    // A run that was refused leaves nothing behind: a folder that holds only the lock goes.
    std::error_code ignored;
    const std::filesystem::directory_iterator files(path_, ignored), end;
    if (!ignored && std::distance(files, end) == 1) std::filesystem::remove_all(path_, ignored);
  }
  ::close(lock_);
}

std::optional<Checkpoint> RunFolder::find_resume(const RunOptions& options) const {
  if (options.resume == ResumePolicy::kAuto) return load_latest_checkpoint(checkpoints());

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
  Checkpoint chosen = load_checkpoint(resolve_checkpoint(options.resume_folder));
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
