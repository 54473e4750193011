#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/dist/group.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/train/trainer.h"

namespace stablemask {

/// The folder of one run, locked for this process while the object lives. Until keep() is called,
/// the destructor removes the lock file and the folders that the constructor created.
///
/// Of several processes that train together process 0 owns the folder. In the others the object
/// only names the files; nothing is created or locked.
class RunFolder {
 public:
  /// The owner creates the folder when it is missing. Throws ConfigError when another run trains in
  /// it, CheckpointError when it cannot be written.
  RunFolder(const std::string& path, std::shared_ptr<dist::Group> group);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  /// Writes config.json and keeps the folder from now on. Does nothing unless this is the owner.
  void keep(const std::string& config_json);

  /// Throws CheckpointError in the owner, and PeerLostError in the others, when the folder or its
  /// lock file is gone or another one, so that another process may train there. All processes call
  /// it.
  void require_held() const;

  const std::string& path() const { return path_; }
  std::string checkpoints() const { return path_ + "/checkpoints"; }
  std::string metrics() const { return path_ + "/metrics.jsonl"; }
  std::string samples() const { return path_ + "/samples.jsonl"; }
  std::string tensorboard() const { return path_ + "/tensorboard"; }

  /// The checkpoint to resume from by the policy, which the owner chooses and every process
  /// verifies; nullopt: a fresh run. Throws ConfigError or CheckpointError for a run that would
  /// overwrite a checkpoint of this folder.
  std::optional<Checkpoint> find_resume(const RunOptions& options,
                                        const HashProgress& progress = {}) const;

 private:
  bool owner() const { return group_->rank() == 0; }
  std::optional<Checkpoint> choose_resume(const RunOptions& options,
                                          const HashProgress& progress) const;
  std::string lock_path() const { return path_ + "/.lock"; }
  void open_lock();
  bool lock_is_named() const;

  std::string path_;
  std::vector<std::string> made_folders_;  ///< innermost first
  std::shared_ptr<dist::Group> group_;
  int lock_ = -1;
  bool made_lock_ = false, kept_ = false;
};

}  // namespace stablemask
