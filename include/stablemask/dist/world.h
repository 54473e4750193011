#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace stablemask::dist {

/// The place of this process among those that the launcher started.
struct World {
  int64_t rank = 0, size = 1;              ///< among all processes
  int64_t local_rank = 0, local_size = 1;  ///< among those of this machine
  std::string launcher;                    ///< "torchrun", "srun"; "": started alone
  std::string address;                     ///< host of the store; "" for one process
  int64_t port = 0;
  /// Whether the launcher serves the store; else process 0 does.
  bool launcher_serves = false;
  /// Differs between restarts of the same job, whose store may still hold the last one's keys.
  std::string attempt;
};

/// A variable of the environment; nullptr: not set.
using Environment = std::function<const char*(const char* name)>;

/// Reads what torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
/// MASTER_PORT, TORCHELASTIC_*) or what srun sets (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, …;
/// the first host of the node list serves the store, on MASTER_PORT or a port derived from the
/// job's id). Without either: one process. Throws ConfigError for variables that are missing,
/// malformed or contradict each other.
World world_from_environment(const Environment& environment);
World world_from_environment();  ///< of this process

}  // namespace stablemask::dist
