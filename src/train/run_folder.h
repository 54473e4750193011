#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/io/checkpoint.h"
#include "stablemask/train/trainer.h"

namespace stablemask {

/// The folder of one run, locked for this process until the object dies. Unless the run is kept,
/// the lock and the folders that the object made go with it; what was there before stays.
class RunFolder {
 public:
  /// Creates the folder when it is missing. Throws ConfigError when another process trains in it,
  /// CheckpointError when it cannot be written.
  explicit RunFolder(const std::string& path);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  /// From now on there is something to keep.
  void keep() { kept_ = true; }

  const std::string& path() const { return path_; }
  std::string checkpoints() const { return path_ + "/checkpoints"; }
  std::string metrics() const { return path_ + "/metrics.jsonl"; }
  std::string config() const { return path_ + "/config.json"; }

  /// The checkpoint to go on from by the policy, verified; nullopt: a fresh run. Refuses
  /// (ConfigError, CheckpointError) what would overwrite or orphan a checkpoint that is here.
  std::optional<Checkpoint> find_resume(const RunOptions& options) const;

 private:
  std::string lock_path() const { return path_ + "/.lock"; }
  void make_folders();
  void open_lock();
  bool lock_is_named() const;

  std::string path_;
  std::vector<std::filesystem::path> made_folders_;  ///< innermost first
  int lock_ = -1;
  bool made_lock_ = false, kept_ = false;
};

}  // namespace stablemask
