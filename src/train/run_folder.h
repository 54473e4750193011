#pragma once

#include <optional>
#include <string>

#include "stablemask/io/checkpoint.h"
#include "stablemask/train/trainer.h"

namespace stablemask {

/// The folder of one run, locked for this process until the object dies. A folder that the object
/// made and nobody wrote to goes with it.
class RunFolder {
 public:
  /// Creates the folder when it is missing. Throws ConfigError when another process trains in it,
  /// CheckpointError when it cannot be written.
  explicit RunFolder(const std::string& path);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string checkpoints() const { return path_ + "/checkpoints"; }
  std::string metrics() const { return path_ + "/metrics.jsonl"; }
  std::string config() const { return path_ + "/config.json"; }

  /// The checkpoint to go on from by the policy, verified; nullopt: a fresh run. Refuses
  /// (ConfigError, CheckpointError) what would overwrite or orphan a checkpoint that is here.
  std::optional<Checkpoint> find_resume(const RunOptions& options) const;

 private:
  std::string path_;
  int lock_ = -1;
  bool created_ = false;  ///< by this object
};

}  // namespace stablemask
